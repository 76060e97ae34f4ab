//! One byte there and one back on one TCP connection: latency.

use super::{Ends, Outcome, exchanges, in_namespace, socket};
use crate::cpu::{self, Pin};
use anyhow::{Context, Result, anyhow, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Runs the load. The answer to a byte is its complement.
pub fn run(ends: &Ends, pin: Pin, time: Duration) -> Result<Outcome> {
    let listener = in_namespace(&ends.server, || socket::listen(ends.listen))?;
    let (client_cpu, server_cpu) = pin.cpus();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            cpu::pin(0, &[server_cpu])?;
            let (stream, client) = socket::accept(&listener)?;
            answer(stream)?;
            anyhow::Ok(client.ip().to_canonical())
        });
        let client = in_namespace(&ends.client, || {
            let stream = socket::dial(ends.connect)?;
            cpu::pin(0, &[client_cpu])?;
            ask(stream, time)
        });
        let seen_as = server.join().map_err(|_| anyhow!("the server's thread"))?;
        Ok(Outcome { seen_as: Some(seen_as?), ..client? })
    })
}

fn ask(mut stream: TcpStream, time: Duration) -> Result<Outcome> {
    stream.set_nodelay(true)?;
    let mut byte = [0u8];
    exchanges::run(time, |count| {
        stream.write_all(&[count as u8])?;
        stream.read_exact(&mut byte).context("no answer")?;
        ensure!(byte[0] == !(count as u8), "a wrong answer after {count} exchanges");
        Ok(())
    })
}

/// Answers until the client hangs up.
pub fn answer(mut stream: TcpStream) -> Result<()> {
    let mut bytes = [0u8; 64];
    loop {
        let n = stream.read(&mut bytes)?;
        if n == 0 {
            return Ok(());
        }
        bytes[..n].iter_mut().for_each(|b| *b = !*b);
        stream.write_all(&bytes[..n])?;
    }
}
