//! Accepting connections until the end: what every listener of ours that is no HTTP server does alike.

use crate::shutdown::stopped;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::warn;

/// Wait after the system refused a connection (no file descriptors, say).
const PAUSE: Duration = Duration::from_millis(50);

/// Returns the next connection; none once `stop` has turned true.
pub async fn accept(listener: &TcpListener, stop: &mut watch::Receiver<bool>) -> Option<TcpStream> {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => return Some(stream),
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            () = stopped(stop) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_come_until_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (end, mut stop) = watch::channel(false);
        let _caller = TcpStream::connect(address).await.expect("it listens");
        assert!(accept(&listener, &mut stop).await.is_some());
        end.send_replace(true);
        assert!(accept(&listener, &mut stop).await.is_none());
    }
}
