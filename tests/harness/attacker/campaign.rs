//! The whole attack: the same lab under one policy after another.

use super::{Access, Attack, Lab, Link, Memory, Place, Policy, Rule, Who};
use anyhow::{Result, ensure};

/// What a whole attack sends; environment variables can change it.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// `PV_NET_SEED`. The seed is the same in each run unless set, so that a failure comes from the change under test.
    pub seed: u64,
    /// `PV_NET_SHOT`: the shot to begin with, to repeat one that has failed.
    pub shot: Option<u32>,
    /// `PV_NET_FRAMES`: how many frames.
    pub frames: usize,
    /// What connects the containers of the pool that is attacked.
    pub link: Link,
}

impl Campaign {
    /// A campaign of `frames` frames unless the environment says otherwise.
    #[must_use]
    pub fn of(link: Link, frames: usize) -> Self {
        let seed = number("PV_NET_SEED").unwrap_or(1);
        Self { seed, shot: number("PV_NET_SHOT"), frames: number("PV_NET_FRAMES").unwrap_or(frames), link }
    }

    /// Sends all frames; `note` is called with a line of text on what each policy's run has seen.
    ///
    /// # Errors
    /// When a frame reached a place that the model excludes, or did not reach a place where it is allowed.
    pub fn run(&self, mut note: impl FnMut(&str)) -> Result<()> {
        let policies = policies(self.link);
        let frames = self.frames.div_ceil(policies.len());
        note(&format!("PV_NET_SEED={} PV_NET_FRAMES={}", self.seed, self.frames));
        let lab = Lab::start(&policies[0])?;
        let (mut memory, mut failed) = (Memory::default(), Vec::new());
        for (n, policy) in policies.into_iter().enumerate() {
            lab.reload(&policy)?;
            // Each policy has shots, and with them marks, of its own: a frame that arrives late is not taken for one of
            // the next policy.
            let first = self.shot.map_or_else(|| u32::try_from(n * frames), Ok)?;
            let attack = Attack { seed: self.seed.wrapping_add(n as u64), first, frames };
            match attack.run(&lab, &lab.world(policy)?, &mut memory) {
                Ok(report) => note(&format!("policy {n}: {report:?}")),
                Err(why) => failed.push(format!("policy {n}: {why}")),
            }
        }
        ensure!(failed.is_empty(), "PV_NET_SEED={}\n{}", self.seed, failed.join("\n"));
        Ok(())
    }
}

/// A number from the environment.
fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Closed and open pools, each `host_access`, and rules both ways. A further container is denied to all.
fn policies(link: Link) -> Vec<Policy> {
    let (a, b, c) = (Who::Container(Place::A), Who::Container(Place::B), Who::Container(Place::C));
    let (lan, out) = ([10, 0, 3, 200].into(), [192, 0, 2, 9].into());
    let out6 = [0x2001, 0xdb8, 1, 0, 0, 0, 0, 9].into();
    let mut all = vec![
        Policy { link, open: false, access: Access::Services, rules: Vec::new() },
        Policy {
            link,
            open: true,
            access: Access::None,
            rules: vec![
                Rule::deny(a, b).at(17, 7000),
                Rule::deny(a, c).at(6, 443),
                Rule::allow(Who::Address(lan), b, 6, 80),
                Rule::allow(Who::World, b, 6, 80),
                Rule::allow(Who::Address(out6), c, 17, 7000),
            ],
        },
        Policy {
            link,
            open: false,
            access: Access::All,
            rules: vec![
                Rule::deny(a, b),
                Rule::deny(a, Who::World),
                Rule::deny(Who::World, b).at(6, 80),
                Rule::allow(a, c, 6, 22),
                Rule::allow(Who::Address(out), c, 6, 7000),
                Rule::deny(a, Who::Host).at(6, 22),
            ],
        },
    ];
    if link.is_macvlan() {
        let d = Who::Container(Place::D);
        all.iter_mut().for_each(|policy| policy.rules.extend([Rule::deny(a, d), Rule::deny(Who::World, d)]));
        // Of groups, by one protocol and port.
        all[0].rules.extend([Rule::allow(a, b, 17, 5353), Rule::allow(Who::World, a, 17, 5353)]);
        all[1].rules.extend([Rule::allow(a, Who::Host, 17, 7000), Rule::allow(Who::World, b, 17, 7000)]);
    }
    all
}
