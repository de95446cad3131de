//! An HTTP/1.1 client for one request on a connection of its own, which the server closes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// What came.
#[derive(Debug)]
pub struct Answer {
    /// Its status code.
    pub status: u16,
    /// All of the body.
    pub body: String,
    headers: Vec<(String, String)>,
}

impl Answer {
    /// The header `name`, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(one, _)| one == name);
        header.map(|(_, value)| value.as_str())
    }
}

/// Gets `path`.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nhost: broker\r\n\r\n");
    send(address, request.as_bytes()).await
}

/// Sends `request` as it is.
pub async fn send(address: SocketAddr, request: &[u8]) -> Answer {
    let answer = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A request that is refused early may not be read to its end.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), answer).await;
    let answer = answer.expect("the server answers and closes");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_lowercase(), value.to_owned())
    });
    Answer {
        status: status[..3].parse().unwrap(),
        body: body.to_owned(),
        headers: headers.collect(),
    }
}
