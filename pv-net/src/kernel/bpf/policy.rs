//! The policy maps. A compiled policy is written beside the one in force, which is removed once the new one has
//! replaced it.
//!
//! Which generation is in force is not decided here. The order is: [`PolicyTables::load`], then the write of the
//! generation ([`DataPlane::next_generation`](super::DataPlane::next_generation)), then [`PolicyTables::forget`] of the
//! old one.

use super::programs::Programs;
use super::table::{map_error, pinned};
use super::{BpfError, sys};
use crate::policy::{Compiled, PairKey};
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use pv_net_common::policy::{
    MAX_POLICY_CIDRS, MAX_POLICY_IDS, MAX_POLICY_PAIRS, POLICY_ADDR_HEAD_BITS, POLICY_ANSWER_AT, POLICY_QUERY_AT,
};
use pv_net_common::{Ip, PolicyAddr, PolicyClass, PolicyId, PolicyPair, PolicyQuery, PolicyVerdict, names};
use std::path::Path;
use std::time::Duration;

/// The daemon's handles to the policy maps.
pub struct PolicyTables {
    ids: HashMap<MapData, PolicyId, PolicyClass>,
    cidrs: LpmTrie<MapData, PolicyAddr, PolicyClass>,
    pairs: LpmTrie<MapData, PolicyPair, PolicyVerdict>,
}

impl PolicyTables {
    /// Opens the maps that are pinned in `maps`.
    ///
    /// # Errors
    /// When a map is missing or has another layout.
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        let (ids, cidrs, pairs) = (names::MAP_POLICY_IDS, names::MAP_POLICY_CIDRS, names::MAP_POLICY_PAIRS);
        Ok(Self {
            ids: HashMap::try_from(pinned(maps, ids)?).map_err(map_error("open", ids))?,
            cidrs: LpmTrie::try_from(pinned(maps, cidrs)?).map_err(map_error("open", cidrs))?,
            pairs: LpmTrie::try_from(pinned(maps, pairs)?).map_err(map_error("open", pairs))?,
        })
    }

    /// Writes `policy` as `generation`, which must not be in force. What an earlier attempt left of that generation is
    /// removed first.
    ///
    /// # Errors
    /// When the kernel refuses to write an entry. Then nothing of the generation is left, and the others are unchanged.
    pub fn load(&mut self, policy: &Compiled, generation: u32) -> Result<(), BpfError> {
        self.remove(|g| g == generation)?;
        self.write(policy, generation).inspect_err(|_| {
            // The error of the write is reported; entries that remain are removed by the next load.
            if let Err(e) = self.remove(|g| g == generation) {
                tracing::warn!(generation, error = %e, "half of a policy is left, not in force");
            }
        })
    }

    fn write(&mut self, policy: &Compiled, generation: u32) -> Result<(), BpfError> {
        for (identity, addr, class) in &policy.ids {
            let key = PolicyId { generation, identity: *identity, addr: *addr };
            self.ids.insert(key, class, 0).map_err(map_error("write", names::MAP_POLICY_IDS))?;
        }
        for (pair, verdict) in &policy.pairs {
            let written = self.pairs.insert(&pair_key(generation, pair), verdict, 0);
            written.map_err(map_error("write", names::MAP_POLICY_PAIRS))?;
        }
        for (addr, bits, class) in &policy.cidrs {
            let key = addr_key(generation, *addr, *bits);
            self.cidrs.insert(&key, class, 0).map_err(map_error("write", names::MAP_POLICY_CIDRS))?;
        }
        Ok(())
    }

    /// Removes `generation`, which is not in force any more, after the programs that may still use it have ended.
    ///
    /// # Errors
    /// When the kernel refuses to read or remove an entry; a later call can remove the rest.
    pub fn forget(&mut self, generation: u32) -> Result<(), BpfError> {
        self.remove_in_use(|g| g == generation)
    }

    /// Removes every generation but `generation`, since a daemon that died may have left others.
    ///
    /// # Errors
    /// When the kernel refuses to read or remove an entry; a later call can remove the rest.
    pub fn keep_only(&mut self, generation: u32) -> Result<(), BpfError> {
        self.remove_in_use(|g| g != generation)
    }

    /// Numbers of entries of `generation`: containers, networks, verdicts.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn entries(&self, generation: u32) -> Result<[usize; 3], BpfError> {
        let ids = keys(self.ids.keys(), MAX_POLICY_IDS, names::MAP_POLICY_IDS)?;
        let cidrs = keys(self.cidrs.keys(), MAX_POLICY_CIDRS, names::MAP_POLICY_CIDRS)?;
        let pairs = keys(self.pairs.keys(), MAX_POLICY_PAIRS, names::MAP_POLICY_PAIRS)?;
        Ok([
            ids.iter().filter(|k| k.generation == generation).count(),
            cidrs.iter().filter(|k| k.data().generation == generation).count(),
            pairs.iter().filter(|k| k.data().generation == generation).count(),
        ])
    }

    /// Whether the maps hold exactly `policy` as `generation`.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn holds(&self, policy: &Compiled, generation: u32) -> Result<bool, BpfError> {
        // A look-up in a trie also finds a shorter prefix that contains the key, so all entries are read instead, each
        // once: this is done at every audit.
        let id = |entry: (PolicyId, _)| (entry.0.generation == generation).then_some(entry);
        let ids: Entries<_, _> = some(self.ids.iter(), MAX_POLICY_IDS, names::MAP_POLICY_IDS, id)?;
        let cidr = |(key, class): (Key<PolicyAddr>, _)| {
            (key.data().generation == generation).then(|| ((key.prefix_len(), key.data()), class))
        };
        let cidrs: Entries<_, _> = some(self.cidrs.iter(), MAX_POLICY_CIDRS, names::MAP_POLICY_CIDRS, cidr)?;
        let pair = |(key, verdict): (Key<PolicyPair>, _)| {
            (key.data().generation == generation).then(|| ((key.prefix_len(), key.data()), verdict))
        };
        let pairs: Entries<_, _> = some(self.pairs.iter(), MAX_POLICY_PAIRS, names::MAP_POLICY_PAIRS, pair)?;
        if [ids.len(), cidrs.len(), pairs.len()] != [policy.ids.len(), policy.cidrs.len(), policy.pairs.len()] {
            return Ok(false);
        }
        let id = |(identity, addr, class): &(u32, Ip, PolicyClass)| {
            ids.get(&PolicyId { generation, identity: *identity, addr: *addr }) == Some(class)
        };
        let cidr = |(addr, bits, class): &(Ip, u32, PolicyClass)| {
            let key = addr_key(generation, *addr, *bits);
            cidrs.get(&(key.prefix_len(), key.data())) == Some(class)
        };
        let pair = |(pair, verdict): &(PairKey, PolicyVerdict)| {
            let key = pair_key(generation, pair);
            pairs.get(&(key.prefix_len(), key.data())) == Some(verdict)
        };
        Ok(policy.ids.iter().all(id) && policy.cidrs.iter().all(cidr) && policy.pairs.iter().all(pair))
    }

    /// Removes generations that programs may still be reading: waits for those programs first, unless there is nothing
    /// to remove.
    fn remove_in_use(&mut self, which: impl Fn(u32) -> bool) -> Result<(), BpfError> {
        let stale = self.stale(which)?;
        if stale.is_empty() {
            return Ok(());
        }
        sys::wait_for_programs();
        self.remove_all(&stale)
    }

    fn remove(&mut self, which: impl Fn(u32) -> bool) -> Result<(), BpfError> {
        let stale = self.stale(which)?;
        self.remove_all(&stale)
    }

    fn stale(&self, which: impl Fn(u32) -> bool) -> Result<Stale, BpfError> {
        let mut stale = Stale {
            ids: keys(self.ids.keys(), MAX_POLICY_IDS, names::MAP_POLICY_IDS)?,
            pairs: keys(self.pairs.keys(), MAX_POLICY_PAIRS, names::MAP_POLICY_PAIRS)?,
            cidrs: keys(self.cidrs.keys(), MAX_POLICY_CIDRS, names::MAP_POLICY_CIDRS)?,
        };
        stale.ids.retain(|key| which(key.generation));
        stale.pairs.retain(|key| which(key.data().generation));
        stale.cidrs.retain(|key| which(key.data().generation));
        Ok(stale)
    }

    fn remove_all(&mut self, stale: &Stale) -> Result<(), BpfError> {
        for key in &stale.ids {
            gone(self.ids.remove(key), names::MAP_POLICY_IDS)?;
        }
        for key in &stale.pairs {
            gone(self.pairs.remove(key), names::MAP_POLICY_PAIRS)?;
        }
        for key in &stale.cidrs {
            gone(self.cidrs.remove(key), names::MAP_POLICY_CIDRS)?;
        }
        Ok(())
    }
}

/// Entries to remove.
struct Stale {
    ids: Vec<PolicyId>,
    pairs: Vec<Key<PolicyPair>>,
    cidrs: Vec<Key<PolicyAddr>>,
}

impl Stale {
    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.pairs.is_empty() && self.cidrs.is_empty()
    }
}

fn addr_key(generation: u32, addr: Ip, bits: u32) -> Key<PolicyAddr> {
    Key::new(POLICY_ADDR_HEAD_BITS + bits, PolicyAddr { generation, addr })
}

fn pair_key(generation: u32, pair: &PairKey) -> Key<PolicyPair> {
    let data = PolicyPair {
        generation,
        src_class: pair.src_class,
        dst_class: pair.dst_class,
        proto: pair.proto,
        port_be: pair.port.to_be(),
    };
    Key::new(pair.bits, data)
}

/// Entries in memory.
type Entries<K, V> = std::collections::HashMap<K, V>;

/// All keys, collected before anything is removed: when the present key is gone, the kernel starts again from the
/// beginning.
fn keys<K: Pod>(
    all: impl Iterator<Item = Result<K, MapError>>,
    of_one_generation: u32,
    map: &'static str,
) -> Result<Vec<K>, BpfError> {
    some(all, of_one_generation, map, Some)
}

/// What `pick` takes of all keys or entries. Their number is limited to two full generations, so that the loop always
/// ends.
fn some<T, U, C: FromIterator<U>>(
    all: impl Iterator<Item = Result<T, MapError>>,
    of_one_generation: u32,
    map: &'static str,
    pick: impl Fn(T) -> Option<U>,
) -> Result<C, BpfError> {
    let all = all.take(2 * of_one_generation as usize);
    all.filter_map(|entry| entry.map(&pick).transpose()).collect::<Result<_, _>>().map_err(map_error("list", map))
}

/// Turns "no such entry" into success.
fn gone(removed: Result<(), MapError>, map: &'static str) -> Result<(), BpfError> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(e) => Err(map_error("remove from", map)(e)),
    }
}

/// The program `pv_policy_probe`, which asks the policy maps in the same way as the data plane. For `policy explain`.
pub struct PolicyProbe {
    program: SchedClassifier,
}

impl PolicyProbe {
    /// Opens the program that is pinned under `pin_dir`; loads and pins it first where it is missing.
    ///
    /// # Errors
    /// When the kernel refuses the program, or the maps are not pinned.
    pub fn open(pin_dir: &Path) -> Result<Self, BpfError> {
        Ok(Self { program: Programs::policy_probe(pin_dir)? })
    }

    /// The verdict of the rules on a query.
    ///
    /// # Errors
    /// When the kernel does not run the program.
    pub fn ask(&mut self, query: &PolicyQuery) -> Result<PolicyVerdict, BpfError> {
        self.ask_often(query, 1).map(|(verdict, _)| verdict)
    }

    /// Asks `times` times; also returns how long one run took.
    ///
    /// # Errors
    /// When the kernel does not run the program.
    pub fn ask_often(&mut self, query: &PolicyQuery, times: u32) -> Result<(PolicyVerdict, Duration), BpfError> {
        let mut frame = [0u8; POLICY_ANSWER_AT + size_of::<PolicyVerdict>()];
        frame[POLICY_QUERY_AT..POLICY_ANSWER_AT].copy_from_slice(&query.bytes());
        let mut answer = frame;
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut answer),
            repeat: times,
            ..TestRunOptions::default()
        };
        let done = self.program.test_run(options).map_err(|e| failed(&e))?;
        if done.return_value != 0 {
            return Err(BpfError::Load(format!("{}: it could not answer", names::PROG_POLICY_PROBE)));
        }
        let word = |at: usize| u32::from_ne_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]]);
        let verdict = PolicyVerdict { rule: word(POLICY_ANSWER_AT), action: word(POLICY_ANSWER_AT + 4) };
        Ok((verdict, done.duration))
    }
}

fn failed(e: &aya::programs::ProgramError) -> BpfError {
    BpfError::Load(format!("{}: {}", names::PROG_POLICY_PROBE, BpfError::chain(e)))
}
