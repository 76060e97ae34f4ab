//! Uplinks that are added and removed by `reload`: pv-net removes its own programs and qdiscs from a link, and leaves
//! those of others.

use crate::lab::{self, Lab, UPLINK, kernel};
use anyhow::{Context, Result, ensure};
use harness::{Namespace, echo};
use pv_net_common::names;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

/// An ordinary uplink.
const PLAIN: &str = "up1";
/// An uplink whose qdisc another program has made.
const SHARED: &str = "up2";
/// The addresses of device and host on `PLAIN`, one of each family.
const PLAIN_NETS: [&[&str]; 2] = [&["198.51.100.1/24", "2001:db8:2::1/64"], &["198.51.100.9/24", "2001:db8:2::9/64"]];

/// The qdiscs and programs on a link.
#[derive(Debug, PartialEq)]
struct Hung {
    qdisc: bool,
    filters: usize,
    pinned: bool,
}

impl Hung {
    const NOTHING: Self = Self { qdisc: false, filters: 0, pinned: false };
    const QDISC: Self = Self { qdisc: true, ..Self::NOTHING };

    fn on(lab: &Lab, link: &str) -> Result<Self> {
        let index = lab.device.ns.run(|| Ok(nix::net::if_::if_nametoindex(link)?))?;
        let qdisc = format!("link {index}: clsact");
        let pin = lab.device.pin_of(names::PROG_FROM_UPLINK, link)?;
        Ok(Self {
            qdisc: lab::qdiscs(&lab.device.ns)?.contains(&qdisc),
            filters: lab::filters(&lab.device.ns, index)?,
            pinned: pin.exists(),
        })
    }
}

/// Configures these uplinks and reloads.
fn set(lab: &Lab, uplinks: &[&str]) -> Result<()> {
    let mut config = lab::config();
    config["network"]["uplinks"] = json!(uplinks);
    lab.reload(&config)
}

/// Fails unless a container reaches the host by `PLAIN`, and is seen with the device's address there.
fn reaches(lab: &Lab, host: &Namespace, port: u16) -> Result<()> {
    for (own, far) in PLAIN_NETS[0].iter().zip(PLAIN_NETS[1]) {
        let plain = |text: &str| -> Result<IpAddr> { Ok(text.split('/').next().context("address")?.parse()?) };
        let (own, far) = (plain(own)?, plain(far)?);
        echo::serve(host, far, port)?;
        let seen = echo::tcp(&lab.a.ns, SocketAddr::new(far, port), b"by the second uplink")?;
        ensure!(seen.ip() == own, "seen as {seen}");
    }
    Ok(())
}

/// Two links become uplinks and stop being uplinks, twice: nothing of pv-net is left on them.
pub fn come_and_go(lab: &mut Lab) -> Result<()> {
    let host = lab.device.outside(PLAIN, PLAIN_NETS[0], PLAIN_NETS[1])?;
    let _other = lab.device.outside(SHARED, &[], &[])?;
    lab.device.ns.run(|| Ok(aya::programs::tc::qdisc_add_clsact(SHARED)?))?;
    let before = lab::qdiscs(&lab.device.ns)?;
    let tcx = kernel()? >= (6, 6);
    for port in [7500, 7501] {
        set(lab, &[UPLINK, PLAIN, SHARED])?;
        for link in [PLAIN, SHARED] {
            let hung = Hung::on(lab, link)?;
            let qdisc = !tcx || link == SHARED;
            ensure!(hung == Hung { qdisc, filters: usize::from(!tcx), pinned: tcx }, "{link}, an uplink: {hung:?}");
        }
        reaches(lab, &host, port)?;
        set(lab, &[UPLINK])?;
        for (link, want) in [(PLAIN, Hung::NOTHING), (SHARED, Hung::QDISC)] {
            let hung = Hung::on(lab, link)?;
            ensure!(hung == want, "{link}, no uplink any more: {hung:?}");
        }
    }
    let after = lab::qdiscs(&lab.device.ns)?;
    ensure!(after == before, "{after:?} instead of {before:?}");
    // The next checks expect only the lab's own links.
    [PLAIN, SHARED].iter().try_for_each(|link| lab::delete_link(&lab.device.ns, link))
}
