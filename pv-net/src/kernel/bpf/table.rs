//! Typed maps: aya's maps, with errors that name the map.

use super::BpfError;
use super::batch;
use crate::kernel::kill_point;
use crate::plan::Prefix;
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use pv_net_common::{PortMapKey, PortMapTarget};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A hash map, with its name for errors.
pub(super) struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    fd: OwnedFd,
}

pub(super) fn map_error(op: &'static str, map: &'static str) -> impl FnOnce(MapError) -> BpfError {
    move |e| BpfError::Map { op, map, why: BpfError::chain(&e) }
}

/// Opens the map `name` that is pinned in `maps`.
pub(super) fn pinned(maps: &Path, name: &'static str) -> Result<Map, BpfError> {
    MapData::from_pin(maps.join(name)).and_then(Map::from_map_data).map_err(map_error("open", name))
}

/// How a map is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read-only: the kernel refuses to write by this handle.
    Read,
    /// Reads and writes.
    Write,
}

/// Opens the map `name` that is pinned in `maps`, for `access`.
fn pinned_for(maps: &Path, name: &'static str, access: Access) -> Result<Map, BpfError> {
    if access == Access::Write {
        return pinned(maps, name);
    }
    let failed = |e: io::Error| BpfError::Map { op: "open", map: name, why: e.to_string() };
    let fd = get_for_reading(&maps.join(name)).map_err(failed)?;
    MapData::from_fd(fd).and_then(Map::from_map_data).map_err(map_error("open", name))
}

/// `BPF_OBJ_GET` with `BPF_F_RDONLY`, which aya does not offer.
fn get_for_reading(path: &Path) -> io::Result<OwnedFd> {
    const OBJ_GET: libc::c_int = 7;
    const RDONLY: u32 = 1 << 3;
    /// The part of `union bpf_attr` for `BPF_OBJ_GET`.
    #[repr(C)]
    struct Pinned {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Pinned { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: RDONLY };
    // SAFETY: `attr` is the command's part of `union bpf_attr`, its size is told, and the path outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, std::ptr::from_ref(&attr), size_of::<Pinned>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl<K: Pod, V: Pod> Table<K, V> {
    pub(super) fn open(maps: &Path, name: &'static str, access: Access) -> Result<Self, BpfError> {
        let map = pinned_for(maps, name, access)?;
        let fd = match &map {
            Map::HashMap(data) | Map::LruHashMap(data) => data.fd().as_fd().try_clone_to_owned(),
            _ => Err(std::io::Error::other("not a hash")),
        }
        .map_err(|e| BpfError::Map { op: "open", map: name, why: e.to_string() })?;
        let map = HashMap::try_from(map).map_err(map_error("open", name))?;
        Ok(Self { name, map, fd })
    }

    pub(super) fn set(&mut self, key: &K, value: &V) -> Result<(), BpfError> {
        kill_point::pass();
        self.map.insert(key, value, 0).map_err(map_error("write", self.name))
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, BpfError> {
        match self.map.get(key, 0) {
            Ok(v) => Ok(Some(v)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(map_error("read", self.name)(e)),
        }
    }

    /// Removes an entry. Returns whether there was one.
    pub(super) fn remove(&mut self, key: &K) -> Result<bool, BpfError> {
        kill_point::pass();
        match self.map.remove(key) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(map_error("remove from", self.name)(e)),
        }
    }

    /// All entries. One that is removed meanwhile may be left out.
    pub(super) fn entries(&self) -> Vec<(K, V)> {
        batch::read(&self.fd).unwrap_or_else(|_| self.map.iter().filter_map(Result::ok).collect())
    }
}

/// An array map with one entry, such as `config`.
pub(super) struct Single<V: Pod> {
    name: &'static str,
    map: Array<MapData, V>,
}

impl<V: Pod> Single<V> {
    pub(super) fn open(maps: &Path, name: &'static str, access: Access) -> Result<Self, BpfError> {
        let map = Array::try_from(pinned_for(maps, name, access)?).map_err(map_error("open", name))?;
        Ok(Self { name, map })
    }

    pub(super) fn get(&self) -> Result<V, BpfError> {
        self.map.get(&0, 0).map_err(map_error("read", self.name))
    }

    pub(super) fn set(&mut self, value: V) -> Result<(), BpfError> {
        kill_point::pass();
        self.map.set(0, value, 0).map_err(map_error("write", self.name))
    }
}

/// Per-CPU counters, which only the programs write.
pub(super) struct Counters {
    name: &'static str,
    map: PerCpuArray<MapData, u64>,
}

impl Counters {
    pub(super) fn open(maps: &Path, name: &'static str) -> Result<Self, BpfError> {
        let map = PerCpuArray::try_from(pinned_for(maps, name, Access::Read)?).map_err(map_error("open", name))?;
        Ok(Self { name, map })
    }

    /// The sum over all CPUs.
    pub(super) fn sum(&self, index: u32) -> Result<u64, BpfError> {
        let values = self.map.get(&index, 0).map_err(map_error("read", self.name))?;
        Ok(values.iter().sum())
    }
}

/// Sets the counters of the map `name` at `indexes` to zero.
pub(super) fn clear(maps: &Path, name: &'static str, indexes: impl Iterator<Item = u32>) -> Result<(), BpfError> {
    let mut map = PerCpuArray::<_, u64>::try_from(pinned(maps, name)?).map_err(map_error("open", name))?;
    for index in indexes {
        let zeros: Vec<u64> = map.get(&index, 0).map_err(map_error("read", name))?.iter().map(|_| 0).collect();
        let failed = |e: io::Error| BpfError::Map { op: "write", map: name, why: e.to_string() };
        let zeros = PerCpuValues::try_from(zeros).map_err(failed)?;
        map.set(index, zeros, 0).map_err(map_error("write", name))?;
    }
    Ok(())
}

/// A longest-prefix-match trie, with its name for errors.
pub(super) struct Trie<K: Pod, V: Pod> {
    name: &'static str,
    map: LpmTrie<MapData, K, V>,
}

/// Published ports.
pub(super) type PortMap = Trie<PortMapKey, PortMapTarget>;

impl<K: Pod, V: Pod> Trie<K, V> {
    pub(super) fn open(maps: &Path, name: &'static str) -> Result<Self, BpfError> {
        let map = LpmTrie::try_from(pinned(maps, name)?).map_err(map_error("open", name))?;
        Ok(Self { name, map })
    }

    pub(super) fn set(&mut self, (bits, key): Prefix<K>, value: V) -> Result<(), BpfError> {
        kill_point::pass();
        self.map.insert(&Key::new(bits, key), value, 0).map_err(map_error("write", self.name))
    }

    pub(super) fn remove(&mut self, (bits, key): Prefix<K>) -> Result<(), BpfError> {
        kill_point::pass();
        match self.map.remove(&Key::new(bits, key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(e) => Err(map_error("remove from", self.name)(e)),
        }
    }

    pub(super) fn entries(&self) -> Vec<(Prefix<K>, V)> {
        self.map.iter().filter_map(Result::ok).map(|(k, v)| ((k.prefix_len(), k.data()), v)).collect()
    }
}
