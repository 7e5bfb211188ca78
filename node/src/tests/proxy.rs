//! A TCP proxy that lets so many bytes of a client through, and then cuts or holds the connection.

use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub(super) struct Proxy {
    address: SocketAddr,
    release: Arc<Notify>,
}

/// What happens after the bytes that are let through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Cut,
    Hold,
}

impl Proxy {
    /// Stands before `target` for one connection.
    pub(super) async fn before(target: SocketAddr, bytes: usize, then: Then) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let release = Arc::new(Notify::new());
        let released = release.clone();
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.expect("the client connects");
            let node = TcpStream::connect(target).await.expect("the node listens");
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_node, mut to_node) = node.into_split();
            let back =
                tokio::spawn(async move { tokio::io::copy(&mut from_node, &mut to_client).await.is_ok() });
            let mut left = bytes;
            let mut buffer = vec![0; 64 * 1024];
            while left > 0 {
                let room = left.min(buffer.len());
                match from_client.read(&mut buffer[..room]).await {
                    Ok(count) if count > 0 => {
                        if to_node.write_all(&buffer[..count]).await.is_err() {
                            return;
                        }
                        left -= count;
                    }
                    _ => return,
                }
            }
            if then == Then::Hold {
                released.notified().await;
                // The node may have given up meanwhile.
                let _ = tokio::io::copy(&mut from_client, &mut to_node).await;
            }
            back.abort();
        });
        Proxy { address, release }
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn release(&self) {
        self.release.notify_one();
    }
}
