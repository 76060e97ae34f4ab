//! TCP streams: throughput. Each block of 4 KiB begins with the stream's number and the block's.

use super::{Check, Ends, Outcome, in_namespace, socket};
use crate::cpu::{self, Pin};
use anyhow::{Context, Result, anyhow, ensure};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const MARK: usize = 8;
const CHUNK: usize = 32 * BLOCK;

/// Runs `flows` streams. The time ends when the last byte has arrived.
pub fn run(ends: &Ends, flows: usize, pin: Pin, time: Duration, check: Check) -> Result<Outcome> {
    let listener = in_namespace(&ends.server, || socket::listen(ends.listen))?;
    let mut pairs = Vec::new();
    let mut seen_as = None;
    for flow in 0..flows {
        let mut out = in_namespace(&ends.client, || socket::dial(ends.connect))?;
        // With the first byte a proxy connects to the server too; the byte says which stream this is.
        out.write_all(&[flow as u8])?;
        let (mut stream, client) = socket::accept(&listener)?;
        let mut first = [0u8];
        stream.read_exact(&mut first).context("the first byte")?;
        ensure!(first[0] == flow as u8, "the streams are mixed up");
        seen_as = Some(client.ip().to_canonical());
        pairs.push((out, stream));
    }
    let (client_cpu, server_cpu) = pin.cpus();
    let start = Instant::now();
    let (sent, received) = std::thread::scope(|scope| {
        let mut ends = Vec::new();
        for (flow, (out, stream)) in pairs.into_iter().enumerate() {
            let receiver = scope.spawn(move || {
                cpu::pin(0, &[server_cpu])?;
                receive(stream, flow as u64, check)
            });
            let sender = scope.spawn(move || {
                cpu::pin(0, &[client_cpu])?;
                send(out, flow as u64, start, time)
            });
            ends.push((sender, receiver));
        }
        let mut total = (0u64, 0u64);
        for (sender, receiver) in ends {
            let sent = sender.join().map_err(|_| anyhow!("a sender's thread"))?;
            let received = receiver.join().map_err(|_| anyhow!("a receiver's thread"))?;
            total.0 += sent?;
            total.1 += received?;
        }
        anyhow::Ok(total)
    })?;
    ensure!(sent == received, "{sent} bytes sent, {received} arrived");
    let rate = received as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64();
    Ok(Outcome { rate, count: received, seen_as, ..Outcome::default() })
}

fn mark(flow: u64, block: u64) -> [u8; MARK] {
    (flow << 56 | block).to_le_bytes()
}

fn filler(at: usize) -> u8 {
    ((at * 7) >> 3) as u8
}

fn send(mut out: TcpStream, flow: u64, start: Instant, time: Duration) -> Result<u64> {
    let mut chunk: Vec<u8> = (0..CHUNK).map(|i| filler(i % BLOCK)).collect();
    let mut block = 0;
    while start.elapsed() < time {
        for at in (0..CHUNK).step_by(BLOCK) {
            chunk[at..at + MARK].copy_from_slice(&mark(flow, block));
            block += 1;
        }
        out.write_all(&chunk).context("the stream stands still")?;
    }
    out.shutdown(Shutdown::Write)?;
    Ok(block * BLOCK as u64)
}

fn receive(mut stream: TcpStream, flow: u64, check: Check) -> Result<u64> {
    let mut buffer = vec![0u8; CHUNK];
    let mut offset = 0u64;
    loop {
        let n = stream.read(&mut buffer).context("the stream stands still")?;
        if n == 0 {
            return Ok(offset);
        }
        let right = match check {
            Check::Bytes => buffer[..n].iter().zip(offset..).all(|(byte, at)| *byte == expected(flow, at)),
            Check::Marks => marks_are_right(&buffer[..n], flow, offset),
        };
        ensure!(right, "what arrived within {n} bytes from {offset} on is not what was sent");
        offset += n as u64;
    }
}

fn expected(flow: u64, at: u64) -> u8 {
    let (block, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
    if within < MARK { mark(flow, block)[within] } else { filler(within) }
}

/// Whether the marks in `data` are right. A mark that the read has cut in two is left out.
fn marks_are_right(data: &[u8], flow: u64, offset: u64) -> bool {
    let block = BLOCK as u64;
    let first = offset.next_multiple_of(block);
    let mut at = (first - offset) as usize;
    let mut number = first / block;
    while at + MARK <= data.len() {
        if data[at..at + MARK] != mark(flow, number) {
            return false;
        }
        at += BLOCK;
        number += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_or_doubled_block_is_seen() {
        let stream: Vec<u8> = (0..4 * BLOCK as u64).map(|at| expected(3, at)).collect();
        assert!(marks_are_right(&stream[100..], 3, 100));
        assert!(!marks_are_right(&stream, 2, 0), "another flow");
        assert!(!marks_are_right(&stream[BLOCK..], 3, 0), "a block is missing");
        assert!(!marks_are_right(&stream, 3, BLOCK as u64), "a block came twice");
    }
}
