//! A kernel in memory, for tests of the plan: it holds the state that steps lead to, refuses the steps that a test
//! chooses, and prints its state.

use super::{Kernel, KernelError};
use crate::plan::{Observed, Op};
use std::fmt;

/// The kernel.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    /// Its state.
    pub holds: Observed,
    /// How many steps it carries out before it refuses one.
    pub refuse_after: Option<usize>,
    /// Steps to refuse, by their text; each is refused once.
    pub refuse: Vec<String>,
    /// All steps that were carried out.
    pub done: Vec<Op>,
    /// Links that could carry packets without a guard after any step so far.
    pub ever_unguarded: Vec<String>,
}

impl Fake {
    /// One that holds this.
    #[must_use]
    pub fn new(holds: Observed) -> Self {
        Self { holds, ..Self::default() }
    }

    /// Whether the link that a step is about exists; `true` for steps about no link.
    fn has_link_of(&self, op: &Op) -> bool {
        match op {
            Op::AttachPrograms { index, .. }
            | Op::Enslave { index, .. }
            | Op::Release { index, .. }
            | Op::SetUp { index, .. }
            | Op::SetDown { index, .. } => self.holds.link(*index).is_some(),
            _ => true,
        }
    }
}

impl Kernel for Fake {
    async fn observe(&mut self) -> Result<Observed, KernelError> {
        Ok(self.holds.clone())
    }

    async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        match &mut self.refuse_after {
            Some(0) => {
                self.refuse_after = None;
                return Err(KernelError::Made(op.to_string()));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let text = op.to_string();
        if let Some(at) = self.refuse.iter().position(|refused| *refused == text) {
            self.refuse.remove(at);
            return Err(KernelError::Made(text));
        }
        if !self.has_link_of(op) {
            return Err(KernelError::Made(format!("{op}: no such link")));
        }
        self.holds.apply(op);
        self.done.push(op.clone());
        self.ever_unguarded.extend(self.holds.unguarded().into_iter().map(ToOwned::to_owned));
        Ok(())
    }
}

impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for link in self.holds.links.values() {
            let state = if link.up { "up" } else { "down" };
            let guard = if self.holds.is_guarded(link.index) { ", guarded" } else { "" };
            let port = link.controller.map_or_else(String::new, |bridge| format!(", port of {bridge}"));
            writeln!(f, "link {} {}: {state}{port}{guard}", link.index, link.name)?;
        }
        for (index, info) in &self.holds.interfaces {
            writeln!(f, "interface {index}: identity {}, pool {}", info.identity, info.pool_id)?;
        }
        for (addr, info) in &self.holds.endpoints {
            writeln!(f, "endpoint {} at {}", std::net::IpAddr::from(*addr), info.link)?;
        }
        Ok(())
    }
}
