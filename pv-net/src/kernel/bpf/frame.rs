//! Runs a program on a frame in memory (`BPF_PROG_TEST_RUN`). No packet is sent, but the program changes maps as usual.

use super::BpfError;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the program returned, such as `TC_ACT_SHOT`.
    pub verdict: i32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// Offset of `ifindex` in `struct __sk_buff` (`linux/bpf.h`). The kernel takes the fields behind it as zero.
const IFINDEX_AT: usize = 40;
/// Programs can make a frame longer, but those of pv-net never longer than this.
const LONGEST: usize = 4096;

/// Runs the program `program`, named `name`, on `frame` as if it had come in on link `ifindex`, or was to leave by it.
/// The link must be in the calling thread's namespace.
///
/// # Errors
/// When the kernel does not run it: there is no such link, or the frame is shorter than an Ethernet header.
pub(super) fn run(program: &SchedClassifier, name: &str, ifindex: u32, frame: &[u8]) -> Result<Ran, BpfError> {
    let mut context = [0u8; IFINDEX_AT + 4];
    context[IFINDEX_AT..].copy_from_slice(&ifindex.to_ne_bytes());
    let mut out = vec![0u8; LONGEST];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    let ran = program.test_run(options).map_err(|e| BpfError::Load(format!("run {name}: {}", BpfError::chain(&e))))?;
    out.truncate(ran.data_size_out as usize);
    Ok(Ran { verdict: ran.return_value.cast_signed(), frame: out })
}
