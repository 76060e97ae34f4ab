//! Masquerade uses a port to one peer again and again: the peer accepts each new connection at once.

use anyhow::{Context, Result, ensure};
use harness::configs::{self, DEVICE, HOST, HOSTS, UPLINK};
use harness::{Device, Namespace};
use pv_net_common::nat;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

const PORT: u16 = 7000;
/// More connections than masquerade has ports.
const CONNECTIONS: u16 = nat::PORTS + 500;

/// How many SYNs were sent again in `ns`.
fn again(ns: &Namespace) -> Result<u64> {
    let text = ns.sh("nstat -asz TcpExtTCPSynRetrans")?;
    let line = text.lines().find(|l| l.starts_with("TcpExtTCPSynRetrans")).context("no such counter")?;
    Ok(line.split_whitespace().nth(1).context("no value")?.parse()?)
}

/// The server closes each connection first, so it is the end in `TIME_WAIT`.
fn serve(ns: &Namespace, at: SocketAddr) -> Result<std::thread::JoinHandle<Result<()>>> {
    let listener = ns.run(|| Ok(TcpListener::bind(at)?))?;
    Ok(std::thread::spawn(move || {
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = listener.accept()?;
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
        Ok(())
    }))
}

fn ask(ns: &Namespace, server: SocketAddr) -> Result<()> {
    ns.run(|| {
        for n in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(server).with_context(|| format!("connection {n}"))?;
            stream.write_all(&[n as u8])?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            ensure!(answer == [n as u8], "connection {n}: {answer:?}");
        }
        Ok(())
    })
}

/// A peer in `TIME_WAIT` refuses a SYN that seems older than the last connection; the container would have to send it
/// again.
#[test]
fn a_port_that_is_used_again_is_taken_at_once() -> Result<()> {
    let mut device = Device::new(&configs::masqueraded())?;
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    device.start()?;
    let web = device.attach("web", "internal")?;
    for (host, _) in HOSTS {
        let server = serve(&out, SocketAddr::new(host, PORT))?;
        let before = again(&web.ns)?;
        ask(&web.ns, SocketAddr::new(host, PORT))?;
        server.join().map_err(|_| anyhow::anyhow!("the server's thread"))??;
        let syns = again(&web.ns)? - before;
        ensure!(syns == 0, "{host}: {syns} SYNs of {CONNECTIONS} connections were sent again");
    }
    Ok(())
}
