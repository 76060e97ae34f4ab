//! Connect, one exchange, close: the cost of a short request.

use super::{Ends, Outcome, exchanges, in_namespace, socket};
use crate::cpu::{self, Pin};
use anyhow::{Context, Result, anyhow, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Runs the load. The server closes first, as most servers do, so the client does not run out of ports.
pub fn run(ends: &Ends, pin: Pin, time: Duration) -> Result<Outcome> {
    let listener = in_namespace(&ends.server, || socket::listen(ends.listen))?;
    let (client_cpu, server_cpu) = pin.cpus();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            cpu::pin(0, &[server_cpu])?;
            serve(&listener, &done)
        });
        let client = in_namespace(&ends.client, || {
            cpu::pin(0, &[client_cpu])?;
            ask(ends, time)
        });
        done.store(true, Ordering::Relaxed);
        // A last connection, from the server's own namespace, ends the wait in `accept`.
        let woken = in_namespace(&ends.server, || socket::dial(ends.listen).map(drop));
        let served = server.join().map_err(|_| anyhow!("the server's thread"))?;
        let (client, (served, seen_as)) = (client?, served?);
        woken?;
        ensure!(served >= client.count, "{} connections of {} arrived at the server", served, client.count);
        Ok(Outcome { seen_as, ..client })
    })
}

fn ask(ends: &Ends, time: Duration) -> Result<Outcome> {
    let mut answer = [0u8; 2];
    exchanges::run(time, |count| {
        let mut stream = socket::dial(ends.connect)?;
        stream.write_all(&[count as u8])?;
        let mut got = 0;
        // A proxy may pass on the answer and the end of the stream separately.
        loop {
            let n = stream.read(&mut answer[got..]).context("no answer")?;
            got += n;
            if n == 0 {
                break;
            }
            ensure!(got == 1, "more than one byte came back");
        }
        ensure!(got == 1 && answer[0] == !(count as u8), "a wrong answer after {count} connections");
        Ok(())
    })
}

fn serve(listener: &TcpListener, done: &AtomicBool) -> Result<(u64, Option<IpAddr>)> {
    let mut count = 0;
    let mut seen_as = None;
    loop {
        let (mut stream, client) = match listener.accept() {
            Ok(accepted) => accepted,
            // On a slow path the server may wait long; the client decides whether that is an error.
            Err(e) if e.kind() == ErrorKind::WouldBlock && !done.load(Ordering::Relaxed) => continue,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok((count, seen_as)),
            Err(e) => return Err(e).context("the server's accept"),
        };
        if done.load(Ordering::Relaxed) {
            return Ok((count, seen_as));
        }
        let mut byte = [0u8];
        // The client counts an exchange that fails because it hung up.
        if stream.read_exact(&mut byte).is_ok() && stream.write_all(&[!byte[0]]).is_ok() {
            count += 1;
            seen_as = Some(client.ip().to_canonical());
        }
    }
}
