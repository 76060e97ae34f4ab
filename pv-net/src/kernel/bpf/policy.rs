//! The policy maps: a compiled policy is written beside the one in force, and removed when another took its place.
//!
//! Nothing here says which generation is in force: that is one write elsewhere. The order is [`PolicyTables::load`],
//! that write, [`PolicyTables::forget`].

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
use std::hash::Hash;
use std::path::Path;
use std::time::Duration;

/// The daemon's hold on the policy maps.
pub struct PolicyTables {
    ids: HashMap<MapData, PolicyId, PolicyClass>,
    cidrs: LpmTrie<MapData, PolicyAddr, PolicyClass>,
    pairs: LpmTrie<MapData, PolicyPair, PolicyVerdict>,
}

impl PolicyTables {
    /// The maps that are pinned in `maps`.
    ///
    /// # Errors
    /// When they are not there, or are of another layout.
    pub(super) fn open(maps: &Path) -> Result<Self, BpfError> {
        let (ids, cidrs, pairs) = (names::MAP_POLICY_IDS, names::MAP_POLICY_CIDRS, names::MAP_POLICY_PAIRS);
        Ok(Self {
            ids: HashMap::try_from(pinned(maps, ids)?).map_err(map_error("open", ids))?,
            cidrs: LpmTrie::try_from(pinned(maps, cidrs)?).map_err(map_error("open", cidrs))?,
            pairs: LpmTrie::try_from(pinned(maps, pairs)?).map_err(map_error("open", pairs))?,
        })
    }

    /// Writes `policy` as `generation`, that must not be in force. What an earlier attempt left of it is removed first.
    ///
    /// # Errors
    /// The kernel's. Nothing of the generation is left then, and the others are as they were.
    pub fn load(&mut self, policy: &Compiled, generation: u32) -> Result<(), BpfError> {
        self.remove(|g| g == generation)?;
        self.write(policy, generation).inspect_err(|_| {
            // The write's error is the one to report; what stays here is removed by the next load.
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

    /// Removes `generation`, that is not in force any more. Programs that began under it are waited for.
    ///
    /// # Errors
    /// The kernel's; the rest can be removed by another call.
    pub fn forget(&mut self, generation: u32) -> Result<(), BpfError> {
        self.remove_in_use(|g| g == generation)
    }

    /// Removes every generation but `generation`: what a daemon that died left behind.
    ///
    /// # Errors
    /// The kernel's; the rest can be removed by another call.
    pub fn keep_only(&mut self, generation: u32) -> Result<(), BpfError> {
        self.remove_in_use(|g| g != generation)
    }

    /// Entries of `generation`: containers, networks, verdicts.
    ///
    /// # Errors
    /// The kernel's.
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

    /// Whether `generation` is exactly `policy`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn holds(&self, policy: &Compiled, generation: u32) -> Result<bool, BpfError> {
        if self.entries(generation)? != [policy.ids.len(), policy.cidrs.len(), policy.pairs.len()] {
            return Ok(false);
        }
        // A look-up in a trie also finds what only contains the key: everything is read instead.
        let ids: std::collections::HashMap<_, _> = self.ids.iter().filter_map(Result::ok).collect();
        let cidrs = in_trie(self.cidrs.iter());
        let pairs = in_trie(self.pairs.iter());
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

    /// Removes what programs may still be reading; where there is nothing, nobody is waited for.
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

fn in_trie<K: Pod + Eq + Hash, V>(
    all: impl Iterator<Item = Result<(Key<K>, V), MapError>>,
) -> std::collections::HashMap<(u32, K), V> {
    all.filter_map(Result::ok).map(|(key, value)| ((key.prefix_len(), key.data()), value)).collect()
}

/// All keys, before anything is removed: a key that is gone makes the kernel begin anew. No more than two generations
/// have, so that nothing can make this endless.
fn keys<K: Pod>(
    all: impl Iterator<Item = Result<K, MapError>>,
    of_one_generation: u32,
    map: &'static str,
) -> Result<Vec<K>, BpfError> {
    all.take(2 * of_one_generation as usize).collect::<Result<_, _>>().map_err(map_error("list", map))
}

/// One that is not there is fine.
fn gone(removed: Result<(), MapError>, map: &'static str) -> Result<(), BpfError> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(e) => Err(map_error("remove from", map)(e)),
    }
}

/// The program that answers from the maps as the data plane would, for `policy explain`.
pub struct PolicyProbe {
    program: SchedClassifier,
}

impl PolicyProbe {
    /// The one that is pinned beside the maps under `pin_dir`; it is loaded and pinned where it is not there.
    ///
    /// # Errors
    /// When the kernel refuses it, or there are no such maps.
    pub fn open(pin_dir: &Path) -> Result<Self, BpfError> {
        Ok(Self { program: Programs::policy_probe(pin_dir)? })
    }

    /// What the rules of a generation say.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask(&mut self, query: &PolicyQuery) -> Result<PolicyVerdict, BpfError> {
        self.ask_often(query, 1).map(|(verdict, _)| verdict)
    }

    /// The same `times` over, and how long one took.
    ///
    /// # Errors
    /// The kernel's.
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
