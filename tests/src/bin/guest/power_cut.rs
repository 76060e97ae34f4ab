//! Clients of DHCP that come without end, on a machine whose power `cargo xtask vm --power-cut` cuts. The daemon's
//! state is on a disk that the next machine has, too. What the disk must have is said on the console: each lease that
//! the daemon knows after its start, and each that a client was acknowledged.

use crate::console;
use crate::lab::{call, netlink};
use anyhow::{Context, Result, bail, ensure};
use harness::dhcp_client::{Said, discover, mac_of};
use harness::raw::RawSocket;
use harness::{Device, Namespace, configs, dhcp, eventually, frame, patience};
use nix::mount::{MsFlags, mount};
use rtnetlink::LinkUnspec;
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const DISK: &str = "/dev/vda";
/// How long the disk may take to appear.
const APPEARS: Duration = Duration::from_secs(10);
/// A network for more clients than come in all rounds, its gateway, and the addresses for clients.
const NET: &str = "10.0.0.0/12";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const RANGE: [&str; 2] = ["10.1.0.0", "10.8.0.0"];
/// Clients that ask at a time, so that several leases are being written when the power goes.
const WINDOW: u32 = 16;
/// After this time all that are asking begin anew: a message may have been lost.
const SILENCE: Duration = Duration::from_secs(5);

/// Runs until the power is cut.
///
/// # Errors
/// When something does not work before that.
pub fn run() -> Result<std::convert::Infallible> {
    let round: u32 = std::env::var("PV_NET_ROUND").context("PV_NET_ROUND")?.parse().context("PV_NET_ROUND")?;
    let mut pool = configs::pool(3);
    pool["subnet"] = json!(NET);
    pool["gateway"] = json!(GATEWAY);
    pool["dhcp"] = json!({"range": RANGE, "lease_time": "7d", "leases_per_port": 65_536});
    let mut device = Device::new(&json!({"network": {"pools": {"internal": pool}}}))?;
    let state = device.file("state");
    std::fs::create_dir(&state)?;
    eventually(APPEARS, || {
        mount(Some(DISK), &state, Some("ext4"), MsFlags::empty(), None::<&str>).with_context(|| format!("mount {DISK}"))
    })?;
    device.start()?;
    let leases = call(&device, "GET", "/leases", "")?;
    for lease in leases.as_array().context("a list of leases")? {
        let text = |key: &str| lease[key].as_str().with_context(|| format!("no {key} in {lease}"));
        console::say(&format!("lease {} {}", text("ipv4_address")?, text("mac_address")?));
    }
    // A machine that was cut must not have damaged the file, which would be a condition.
    let status = call(&device, "GET", "/status", "")?;
    let conditions = status["conditions"].to_string();
    ensure!(!conditions.contains("lease"), "{conditions}");
    console::say("ready");
    ask(&clients(&device)?, round)
}

/// A namespace whose `eth0` is behind a port of the pool's bridge.
fn clients(device: &Device) -> Result<Namespace> {
    let clients = Namespace::new("clients")?;
    device.ns.connect(("port", &[]), &clients, ("eth0", &[]))?;
    let index = |name: &str| device.ns.run(|| Ok(nix::net::if_::if_nametoindex(name)?)).context(name.to_owned());
    let (port, bridge) = (index("port")?, index("pvbr3")?);
    netlink(&device.ns, async |handle| {
        let message = LinkUnspec::new_with_index(port).controller(bridge).build();
        Ok(handle.link().set(message).execute().await?)
    })?;
    Ok(clients)
}

/// Clients ask one after the other; each is told of when it has its address.
fn ask(ns: &Namespace, round: u32) -> Result<std::convert::Infallible> {
    let socket = RawSocket::open_for(ns, "eth0", frame::IPV4)?;
    let mut next = round << 20;
    let mut start = |socket: &RawSocket| {
        next += 1;
        socket.send(&discover(next))
    };
    let mut heard = Instant::now();
    (0..WINDOW).try_for_each(|_| start(&socket))?;
    loop {
        let is_late = heard.elapsed() > patience(SILENCE);
        if is_late {
            (0..WINDOW).try_for_each(|_| start(&socket))?;
            heard = Instant::now();
        }
        let Some(found) = socket.receive(Duration::from_millis(100), |bytes| Said::of(bytes).is_some())? else {
            continue;
        };
        let Some(said) = Said::of(&found) else { continue };
        heard = Instant::now();
        match said.kind {
            dhcp::OFFER => socket.send(&said.request())?,
            dhcp::ACK => {
                let mac = mac_of(said.client).map(|octet| format!("{octet:02x}")).join(":");
                console::say(&format!("acked {} {mac}", said.address));
                start(&socket)?;
            }
            _ => bail!("a client is refused: {said:?}"),
        }
    }
}
