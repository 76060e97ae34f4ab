//! Handing the programs to the kernel's verifier, which is most of what a start takes.

use super::BpfError;
use aya::Ebpf;
use aya::programs::{Program, SchedClassifier};
use pv_net_common::names;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Those that packets of containers and uplinks meet; the last ones are the largest.
fn wanted() -> Vec<&'static str> {
    let entries = [names::PROG_CLOCK, names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER, names::PROG_FROM_UPLINK];
    entries.into_iter().chain(names::PROG_STAGES).collect()
}

/// Loads the programs of the data plane, two at a time: the verifier has one CPU a program. Its memory would grow with
/// every further one, and small devices have little.
///
/// # Errors
/// When one is not in the object, or the kernel refuses it.
pub(super) fn load_programs(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    let wanted = wanted();
    let place = |name: &str| wanted.iter().position(|w| *w == name);
    let mut found: Vec<_> = ebpf.programs_mut().filter(|(name, _)| place(name).is_some()).collect();
    if let Some(missing) = wanted.iter().find(|w| found.iter().all(|(name, _)| name != *w)) {
        return Err(BpfError::Load(format!("{missing}: not in the object")));
    }
    found.sort_by_key(|(name, _)| place(name));
    let rest = Mutex::new(found);
    let work = || {
        loop {
            // The largest first, so that nobody waits for it at the end.
            let next = rest.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((name, program)) = next else { return Ok(()) };
            load(name, program)?;
        }
    };
    thread::scope(|scope| {
        let beside = scope.spawn(work);
        let here = work();
        let there = beside.join().unwrap_or_else(|_| Err(BpfError::Load("a thread that loads programs".to_owned())));
        here.and(there)
    })
}

fn load(name: &str, program: &mut Program) -> Result<(), BpfError> {
    let program: &mut SchedClassifier =
        program.try_into().map_err(|e: aya::programs::ProgramError| BpfError::Load(format!("{name}: {e}")))?;
    program.load().map_err(|e| BpfError::Load(format!("{name}: {}", BpfError::chain(&e))))
}
