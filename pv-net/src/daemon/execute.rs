//! Carries out steps one after the other, and handles those that fail.

use crate::failure::Failure;
use crate::kernel::Kernel;
use crate::plan::{Observed, Op};
use std::collections::BTreeSet;

/// A step that failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// The container's link that the step is about.
    pub link: Option<u32>,
    /// The failure, as text for people.
    pub why: String,
}

/// Carries out as many of `ops` as possible. When a step about a container's link fails, that link is closed, and the
/// other steps that would open it are left out; all other steps go on.
pub(super) async fn carry_out(kernel: &mut impl Kernel, ops: &[Op]) -> Vec<Failed> {
    let mut failed = Vec::new();
    let mut closed = BTreeSet::new();
    for op in ops {
        if op.opens().is_some_and(|link| closed.contains(&link)) {
            continue;
        }
        tracing::debug!(%op, "apply");
        let Err(e) = kernel.apply(op).await else { continue };
        let mut why = Failure::from(e).about(op).line();
        if let Some(link) = op.opens() {
            closed.insert(link);
            why.push_str(": its traffic is stopped");
            if let Err(e) = close(kernel, link).await {
                why = format!("{why}, but for this: {}", e.line());
            }
        }
        tracing::error!(%op, error = %why, "a step failed");
        failed.push(Failed { link: op.opens(), why });
    }
    failed
}

/// Sets a link down; deletes it if that fails.
async fn close(kernel: &mut impl Kernel, index: u32) -> Result<(), Failure> {
    let name = index.to_string();
    if kernel.apply(&Op::SetDown { link: name.clone(), index }).await.is_ok() {
        return Ok(());
    }
    Ok(kernel.apply(&Op::DeleteLink { link: name, index }).await?)
}

/// Carries out all of `ops`, or none: when a step fails, those before it are undone, the last one first. `before` is
/// the state of the kernel.
///
/// # Errors
/// The failure of the step, with everything that could not be undone.
pub(super) async fn all_or_nothing(kernel: &mut impl Kernel, ops: &[Op], before: &Observed) -> Result<(), Failure> {
    let mut now = before.clone();
    let mut back = Vec::new();
    for op in ops {
        tracing::debug!(%op, "apply");
        // A failed step may be half done, so it is undone too.
        back.extend(op.undo(&now).into_iter().rev());
        if let Err(e) = kernel.apply(op).await {
            let mut not_restored = Vec::new();
            for undo in back.iter().rev() {
                if let Err(e) = kernel.apply(undo).await {
                    not_restored.push(Failure::from(e).about(undo));
                }
            }
            return Err(Failure::from(e).not_restored(not_restored));
        }
        now.apply(op);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
