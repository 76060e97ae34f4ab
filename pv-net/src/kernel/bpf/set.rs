//! The set of maps over which the programs are loaded: the pinned set, or a new one beside it.
//!
//! `<bpffs>/maps` is always a complete set, which programs on links may be using. When one of its maps cannot be kept,
//! a new set is built in `maps_new`: the kept maps are pinned there a second time, the others are made. When all links
//! have the programs that use the new set, it takes the place of `maps` by two renames. A daemon that dies on the way
//! leaves either `maps` as it was, or no `maps` and a complete `maps_new`.

use super::object::object;
use super::{BpfError, pin, sys};
use crate::kernel::kill_point;
use aya::maps::{MapData, MapInfo};
use aya_obj::Object;
use pv_net_common::layout::made_anew;
use pv_net_common::{ABI_VERSION, GlobalConfig, names};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Maps whose size differs from that in the object: it follows the configuration, or the page size.
const SIZED: [&str; 3] = [names::MAP_FLOWS, names::MAP_HALF_OPEN, names::MAP_EVENTS];

/// An upper bound for the size of any version of `config`.
const MAX_CONFIG_BYTES: u32 = 4096;

/// The maps over which programs are loaded.
#[derive(Debug)]
pub(super) struct MapSet {
    /// Directory of their pins.
    pub dir: PathBuf,
    /// Whether this set is beside another one that is still in force.
    pub beside: bool,
    /// Whether any map of an earlier daemon is kept.
    pub kept: bool,
    /// The maps that are made anew.
    pub anew: Vec<&'static str>,
    /// The initial contents of `config`, where that is made anew and continues an older one.
    pub config: Option<GlobalConfig>,
    /// Conditions to report.
    pub conditions: Vec<String>,
}

/// The properties of a map that decide whether its entries can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    kind: u32,
    pub key_bytes: u32,
    pub value_bytes: u32,
    entries: u32,
    flags: u32,
}

impl Shape {
    fn of_pin(file: &Path) -> Option<Self> {
        let info = MapInfo::from_pin(file).ok()?;
        Some(Self {
            kind: info.map_type().ok()? as u32,
            key_bytes: info.key_size(),
            value_bytes: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }

    fn fits(self, name: &str, wanted: Self) -> bool {
        self == Self { entries: if SIZED.contains(&name) { self.entries } else { wanted.entries }, ..wanted }
    }
}

/// The properties of the pinned maps, as the object declares them.
pub(super) fn shapes() -> Result<BTreeMap<&'static str, Shape>, BpfError> {
    let bytes = object()?;
    let object = Object::parse(&bytes).map_err(|e| BpfError::Load(BpfError::chain(&e)))?;
    let shape = |name: &'static str| {
        let map = object.maps.get(name).ok_or_else(|| BpfError::Load(format!("{name}: no such map")))?;
        let shape = Shape {
            kind: map.map_type(),
            key_bytes: map.key_size(),
            value_bytes: map.value_size(),
            entries: map.max_entries(),
            flags: map.map_flags(),
        };
        Ok((name, shape))
    };
    names::MAPS.into_iter().map(shape).collect()
}

/// What the `config` map of the pinned set says.
enum Config {
    /// There is no pinned set.
    Nothing,
    /// There is one, but its layout is unknown; the text says why.
    Unknown(String),
    /// The layout version, and the bytes of the map's entry.
    Known(u32, Vec<u8>),
}

impl Config {
    fn of(maps: &Path) -> Result<Self, BpfError> {
        if pin::list(maps)?.is_empty() {
            return Ok(Self::Nothing);
        }
        Ok(Self::read(&maps.join(names::MAP_CONFIG)).unwrap_or_else(Self::Unknown))
    }

    fn read(file: &Path) -> Result<Self, String> {
        let map = MapData::from_pin(file).map_err(|e| BpfError::chain(&e))?;
        let size = map.info().map_err(|e| BpfError::chain(&e))?.value_size();
        // A pinned object of another kind has other data where a map has its size.
        if size > MAX_CONFIG_BYTES {
            return Err("it is no map of pv-net's".to_owned());
        }
        let value = sys::first_value(map.fd().as_fd(), size).map_err(|e| e.to_string())?;
        match value.first_chunk() {
            Some(abi) => Ok(Self::Known(u32::from_ne_bytes(*abi), value)),
            None => Err(format!("its value has {size} bytes")),
        }
    }
}

/// A `config` with the values of an older one, which may lack fields at the end.
fn grown(old: &[u8]) -> GlobalConfig {
    let mut bytes = [0u8; size_of::<GlobalConfig>()];
    let common = old.len().min(bytes.len());
    bytes[..common].copy_from_slice(&old[..common]);
    // SAFETY: integers without padding, of any value; the bytes are as many, and need not be aligned.
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

impl MapSet {
    /// The complete set that is pinned in `dir`.
    pub(super) fn whole(dir: PathBuf) -> Self {
        Self { dir, beside: false, kept: true, anew: Vec::new(), config: None, conditions: Vec::new() }
    }

    /// The set that is pinned under `root`, if all of its maps can be kept. Else a new set beside it, in which the kept
    /// maps are pinned already; the others are made when programs are loaded.
    ///
    /// # Errors
    /// When pins cannot be read or made. What is in force stays.
    pub(super) fn choose(root: &Path) -> Result<Self, BpfError> {
        let in_force = pin::maps_dir(root);
        let shapes = shapes()?;
        let fits = |name: &str| {
            let wanted = shapes.get(name).copied();
            wanted.zip(Shape::of_pin(&in_force.join(name))).is_some_and(|(wanted, found)| found.fits(name, wanted))
        };
        let found = Config::of(&in_force)?;
        let (abi, why) = match &found {
            Config::Nothing => (None, None),
            Config::Unknown(why) => (None, Some(format!("pinned maps cannot be read (config: {why})"))),
            Config::Known(ABI_VERSION, _) => {
                (Some(ABI_VERSION), Some("pinned maps are missing, or of another kind".to_owned()))
            }
            Config::Known(abi, _) => {
                (Some(*abi), Some(format!("pinned maps of layout {abi} were replaced by layout {ABI_VERSION}")))
            }
        };
        let anew: Vec<_> = made_anew(abi, fits).collect();
        let mut set = Self {
            dir: in_force.clone(),
            beside: !anew.is_empty(),
            kept: anew.len() < names::MAPS.len(),
            anew,
            config: None,
            conditions: Vec::new(),
        };
        if !set.beside {
            return Ok(set);
        }
        if let Config::Known(_, old) = &found
            && set.kept
            && set.is_anew(names::MAP_CONFIG)
        {
            set.config = Some(grown(old));
        }
        let which = if set.kept { set.anew.join(", ") } else { "all".to_owned() };
        let flows = if set.is_anew(names::MAP_FLOWS) { "; flows start anew" } else { "" };
        set.conditions.extend(why.map(|why| format!("{why}: made anew: {which}{flows}")));
        set.dir = pin::new_maps_dir(root);
        pin::make_dir(&set.dir)?;
        if let Err(e) = set.pin_kept(&in_force) {
            // The first error is reported; the next start removes what is left here.
            pin::remove_dir(&set.dir).unwrap_or_else(|e| tracing::warn!(error = %e, "half a set of maps is left"));
            return Err(e);
        }
        Ok(set)
    }

    fn pin_kept(&self, in_force: &Path) -> Result<(), BpfError> {
        let kept = names::MAPS.into_iter().filter(|name| !self.is_anew(name));
        kept.into_iter().try_for_each(|name| pin_again(&in_force.join(name), &self.dir.join(name)))
    }

    /// Whether the map is made anew, so that it holds nothing of an earlier daemon.
    pub(super) fn is_anew(&self, name: &str) -> bool {
        self.anew.contains(&name)
    }

    /// Puts the set in the place of the one in force. No link may have programs that use the old one any more.
    ///
    /// # Errors
    /// When a directory cannot be renamed, or old pins cannot be removed. The next start continues.
    pub(super) fn put_in_force(&mut self, root: &Path) -> Result<(), BpfError> {
        if !self.beside {
            // Removes what an earlier build pinned here and nobody uses any more, such as `stages`.
            let others = pin::list(&self.dir)?.into_iter().filter(|name| !names::MAPS.contains(&name.as_str()));
            return others.into_iter().try_for_each(|name| pin::remove(&self.dir.join(name)));
        }
        let (now, old) = (pin::maps_dir(root), pin::old_maps_dir(root));
        rename(&now, &old)?;
        rename(&self.dir, &now)?;
        (self.dir, self.beside) = (now, false);
        pin::remove_dir(&old)
    }
}

/// Brings the directories of maps back to their normal state after a daemon died at any point.
///
/// # Errors
/// When a directory cannot be renamed or removed.
pub(super) fn recover(root: &Path) -> Result<(), BpfError> {
    let (now, new) = (pin::maps_dir(root), pin::new_maps_dir(root));
    // The daemon died between the two renames, so all links have programs that use the new set.
    if !now.exists() && new.exists() {
        rename(&new, &now)?;
    }
    pin::remove_dir(&new)?;
    pin::remove_dir(&pin::old_maps_dir(root))
}

fn rename(from: &Path, to: &Path) -> Result<(), BpfError> {
    kill_point::pass();
    fs::rename(from, to).map_err(pin::pin_error("rename", from))
}

fn pin_again(from: &Path, to: &Path) -> Result<(), BpfError> {
    let map =
        MapData::from_pin(from).map_err(|e| pin::pin_error("open", from)(io::Error::other(BpfError::chain(&e))))?;
    kill_point::pass();
    map.pin(to).map_err(|e| pin::pin_error("pin", to)(io::Error::other(BpfError::chain(&e))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_goes_on_where_it_has_grown() {
        let before = GlobalConfig { abi: 3, generation: 7, epoch: 9, routes: 5, ..GlobalConfig::default() };
        // SAFETY: integers without padding.
        let bytes: [u8; size_of::<GlobalConfig>()] = unsafe { std::mem::transmute(before) };
        assert_eq!(grown(&bytes), before);
        let shorter = &bytes[..bytes.len() - 4];
        assert_eq!(grown(shorter), GlobalConfig { routes: 0, ..before });
        let longer = [&bytes[..], &[1, 2, 3, 4]].concat();
        assert_eq!(grown(&longer), before);
    }

    /// If this fails, a layout has changed: raise `ABI_VERSION`, set the map's number in `layout_since` to it, and
    /// update the sizes here.
    #[test]
    fn sizes_are_those_of_the_layout() {
        let sizes: Vec<String> = shapes()
            .expect("the object")
            .into_iter()
            .map(|(name, s)| {
                let since = pv_net_common::layout::layout_since(name);
                format!("{name} {since} {} {}", s.key_bytes, s.value_bytes)
            })
            .collect();
        assert_eq!(sizes.join("\n"), SIZES);
    }

    /// Columns: name, `layout_since`, bytes of a key, bytes of a value.
    const SIZES: &str = "\
children 6 16 32
config 6 4 40
drops 6 4 8
endpoints 6 16 32
events 6 0 0
filter_buckets 6 20 8
filter_rate 6 4 24
filter_sources 6 24 4
flow_counts 6 4 272
flow_limits 6 4 16
flows 6 44 120
fragments 6 8 52
half_open 7 44 288
interfaces 6 4 168
locals 6 16 4
nat_owners 8 4 8
networks 6 24 4
policy_cidrs 6 24 8
policy_ids 6 24 8
policy_pairs 6 20 8
port_map 7 24 24
senders 6 12 4
sock_origins 6 32 20
sources 6 24 16
stats 6 4 8
uplinks 6 4 48";
}
