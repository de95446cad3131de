//! Unix sockets: by path, and by option in the abstract namespace.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixListener as StdListener;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use socket2::Domain;
use socket2::SockAddr;
use socket2::Socket;
use socket2::Type;
use tokio::net::UnixListener;

use super::Error;
use super::UnixConfig;

/// Binds the path, replacing a dead process's socket, and the abstract name where there is one.
pub(super) fn bind(config: &UnixConfig) -> Result<Vec<UnixListener>, Error> {
    let path = config.path.as_path();
    let failed = |source| Error::Unix {
        path: path.to_owned(),
        source,
    };
    let mode = mode(&config.mode)?;
    clear(path)?;
    let mut listeners = vec![private(path, mode).map_err(failed)?];
    if let Some(name) = &config.abstract_name {
        tracing::warn!(
            name,
            "listening on an abstract socket: any local process may bind such a name first and \
             pose as the broker"
        );
        let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
        let listener = StdListener::bind_addr(&address).map_err(failed)?;
        listeners.push(listen(listener).map_err(failed)?);
    }
    Ok(listeners)
}

/// Listens at `path` with `mode`: nobody can connect before the mode is in force, whatever the
/// process's umask leaves open.
fn private(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    listen(OwnedFd::from(socket).into())
}

fn listen(listener: StdListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Removes a socket that nobody answers on; anything else stays.
fn clear(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Unix {
        path: path.to_owned(),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::NoSocket {
            path: path.to_owned(),
        });
    }
    match StdStream::connect(path) {
        Ok(_) => Err(Error::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn mode(text: &str) -> Result<u32, Error> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o007 == 0 => Ok(mode),
        Ok(_) | Err(_) => Err(Error::Mode {
            mode: text.to_owned(),
        }),
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_has_its_mode_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("broker.sock");
        let sockets = bind(&config(&path, "600")).expect("bound");
        let metadata = fs::symlink_metadata(&path).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1);
        assert!(matches!(
            bind(&config(&path, "600")),
            Err(Error::InUse { .. })
        ));
        drop(sockets);
        bind(&config(&path, "660")).expect("a dead one is replaced");
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("broker.sock");
        fs::write(&path, "precious").expect("written");
        assert!(matches!(
            bind(&config(&path, "600")),
            Err(Error::NoSocket { .. })
        ));
        assert_eq!(fs::read(&path).expect("there"), b"precious");
    }

    fn config(path: &Path, mode: &str) -> UnixConfig {
        UnixConfig {
            path: path.to_owned(),
            mode: mode.to_owned(),
            abstract_name: None,
        }
    }
}
