//! How the processes get the identifier of their connection: process 0 listens at an address and gives it to the
//! others. All else goes through the connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Bytes of the identifier.
pub(super) const ID_BYTES: usize = 128;
/// What a process says when it asks for the identifier.
const GREETING: &[u8; 8] = b"gelora 1";
/// Pause between two attempts to reach process 0.
const PAUSE: Duration = Duration::from_millis(100);

/// Gives the identifier to every other process, each once.
pub(super) fn give(address: &str, world: usize, id: [u8; ID_BYTES], timeout: Duration) -> Result<[u8; ID_BYTES]> {
    if world == 1 {
        return Ok(id);
    }
    let problem = |what: String| Error::Process(format!("{address} (MASTER_ADDR, MASTER_PORT): {what}"));
    let port = address.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let port = port.ok_or_else(|| problem("expected HOST:PORT".into()))?;
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(|e| problem(format!("cannot listen: {e}")))?;
    listener.set_nonblocking(true).map_err(|e| problem(e.to_string()))?;
    let (began, mut given) = (Instant::now(), vec![false; world]);
    given[0] = true;
    while let Some(missing) = given.iter().position(|is_given| !is_given) {
        if began.elapsed() > timeout {
            return Err(problem(format!("process {missing} did not come within {} s", timeout.as_secs_f64())));
        }
        match listener.accept() {
            // Whoever says something else is none of the processes.
            Ok((stream, _)) => {
                if let Ok(rank) = answer(stream, &id)
                    && let Some(is_given) = given.get_mut(rank)
                {
                    *is_given = true;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE / 10),
            Err(e) => return Err(problem(e.to_string())),
        }
    }
    Ok(id)
}

/// Reads the greeting and the rank of a process and sends it the identifier. Returns the rank.
fn answer(mut stream: TcpStream, id: &[u8; ID_BYTES]) -> std::io::Result<usize> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut greeting, mut rank) = ([0; GREETING.len()], [0; 8]);
    stream.read_exact(&mut greeting)?;
    stream.read_exact(&mut rank)?;
    if greeting != *GREETING {
        return Err(ErrorKind::InvalidData.into());
    }
    stream.write_all(id)?;
    // The process has read it when it closes the connection.
    let _ = stream.read(&mut [0]);
    Ok(u64::from_le_bytes(rank) as usize)
}

/// Asks process 0 for the identifier, until it is there.
pub(super) fn asked(address: &str, rank: usize, timeout: Duration) -> Result<[u8; ID_BYTES]> {
    let began = Instant::now();
    loop {
        match ask(address, rank) {
            Ok(id) => return Ok(id),
            Err(e) if began.elapsed() > timeout => {
                let problem = format!("{address} (MASTER_ADDR, MASTER_PORT): process 0 cannot be reached: {e}");
                return Err(Error::Process(problem));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn ask(address: &str, rank: usize) -> std::io::Result<[u8; ID_BYTES]> {
    let place = address.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&place, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(GREETING)?;
    stream.write_all(&(rank as u64).to_le_bytes())?;
    let mut id = [0; ID_BYTES];
    stream.read_exact(&mut id)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// A port that was free a moment ago.
    fn address() -> String {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        format!("127.0.0.1:{port}")
    }

    #[test]
    fn every_process_gets_the_identifier_of_the_first() {
        let (address, id) = (address(), std::array::from_fn(|i| i as u8));
        thread::scope(|scope| {
            let others: Vec<_> = (1..4)
                .map(|rank| {
                    scope.spawn({
                        let address = &address;
                        move || asked(address, rank, TIMEOUT).expect("process 0 answers")
                    })
                })
                .collect();
            // Somebody else who connects does not count.
            let stranger = scope.spawn(|| {
                while TcpStream::connect(&*address).and_then(|mut s| s.write_all(b"GET / HTTP/1.1\r\n\r\n")).is_err() {
                    thread::sleep(PAUSE);
                }
            });
            assert_eq!(give(&address, 4, id, TIMEOUT).expect("all come"), id);
            assert!(others.into_iter().all(|other| other.join().expect("no panic") == id));
            stranger.join().expect("no panic");
        });
    }

    #[test]
    fn who_does_not_come_is_named() {
        let (address, short) = (address(), Duration::from_millis(200));
        let alone = give(&address, 3, [0; ID_BYTES], short).expect_err("nobody comes").to_string();
        assert!(alone.contains(&address) && alone.contains("process 1 did not come within 0.2 s"), "{alone}");
        let unreached = asked(&address, 1, short).expect_err("nobody listens").to_string();
        assert!(unreached.contains("process 0 cannot be reached"), "{unreached}");
    }
}
