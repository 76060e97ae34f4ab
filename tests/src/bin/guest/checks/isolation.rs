//! Pools that are closed to each other.

use super::forwarding::datagrams;
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use harness::{echo, patience};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const PORT: u16 = 7000;

/// A refused packet is answered at once and counted, in both families and for TCP and UDP.
pub fn answers(lab: &mut Lab) -> Result<()> {
    for to in lab.c.addresses() {
        let server = SocketAddr::new(to, PORT);
        echo::serve(&lab.c.ns, to, PORT)?;
        let grown = lab.counted(|| {
            let start = Instant::now();
            let refused = lab.a.ns.run(|| Ok(TcpStream::connect(server).err()))?;
            ensure!(refused.as_ref().is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused), "{to}: {refused:?}");
            // The first retransmission of TCP comes after one second.
            ensure!(start.elapsed() < Duration::from_millis(900), "{to}: refused only after {:?}", start.elapsed());

            let socket = datagrams(&lab.a, server)?;
            socket.set_read_timeout(Some(patience(Duration::from_secs(1))))?;
            socket.send(b"hello")?;
            let answer = socket.recv(&mut [0; 16]).err().context("a datagram crossed closed pools")?;
            let told = matches!(answer.kind(), ErrorKind::HostUnreachable | ErrorKind::PermissionDenied);
            ensure!(told, "{to}: no ICMP error, but {answer:?}");
            Ok(())
        })?;
        ensure!(grown["pool-isolated"] >= 2 && grown["answered"] >= 2, "{to}: {grown:?}");
    }
    Ok(())
}
