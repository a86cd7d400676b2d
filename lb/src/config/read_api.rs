//! Reads `[api]`: where the daemon listens, and whom it answers there.

use std::{net::SocketAddr, path::PathBuf};

use super::{
    keys,
    model::{Api, ApiTls, Remote},
    outside::Outside,
    section::{Field, Section},
};

/// `[api]`, which may be absent.
pub(super) fn api(file: &Section<'_>, outside: Outside) -> Option<Api> {
    let Some(field) = file.get("api") else {
        return Some(Api {
            socket: PathBuf::from(SOCKET),
            remote: None,
        });
    };
    let section = field.table(&keys::API)?;
    let socket = section.or("socket", PathBuf::from(SOCKET), |field| socket(&field));
    let remote = remote(&section, outside);
    Some(Api {
        socket: socket?,
        remote: remote?,
    })
}

const SOCKET: &str = "/run/sluice/sluice.sock";
/// `sun_path`, without its closing NUL.
const SOCKET_BYTES: usize = 107;

fn socket(field: &Field<'_>) -> Option<PathBuf> {
    let socket = field.absolute_path()?;
    if socket.as_os_str().len() > SOCKET_BYTES {
        field.error(|| {
            format!("`socket` is longer than {SOCKET_BYTES} bytes, the most that a Unix socket's path may have; choose a shorter one")
        });
        return None;
    }
    Some(socket)
}

fn remote(section: &Section<'_>, outside: Outside) -> Option<Option<Remote>> {
    let tokens_file = section.optional("tokens_file", |field| tokens_file(&field, outside));
    let tls = section.optional("tls", |field| tls(&field, outside));
    let Some(field) = section.get("listen") else {
        for key in ["tokens_file", "tls"] {
            if let Some(field) = section.get(key) {
                field.error(|| {
                    format!("`{key}` is for clients by TCP, and there is no `listen`; write `listen = \"127.0.0.1:8443\"`, or remove `{key}`")
                });
            }
        }
        return Some(None);
    };
    let listen = listen(&field);
    if let Some(listen) = listen
        && section.get("tls").is_none()
        && !listen.ip().to_canonical().is_loopback()
    {
        field.error(|| {
            format!("`listen` is {listen} without TLS: tokens would cross the network in the clear; add [api.tls] with `cert` and `key`, or listen on 127.0.0.1 or [::1]")
        });
    }
    if section.get("tokens_file").is_none() {
        field.error(|| {
            "`listen` without `tokens_file`: nobody could be told from anybody; write `tokens_file = \"/etc/sluice/tokens\"`, and make a token by `sluice token new`".into()
        });
    }
    Some(Some(Remote {
        listen: listen?,
        tls: tls?,
        tokens_file: tokens_file??,
    }))
}

fn listen(field: &Field<'_>) -> Option<SocketAddr> {
    let listen: SocketAddr = field.parsed(
        field.string()?,
        "an IP address with a port",
        "\"192.0.2.1:8443\" or \"[2001:db8::1]:8443\"",
    )?;
    if listen.port() == 0 {
        field.error(|| format!("`listen` is {listen}; give a port from 1 to 65535"));
        return None;
    }
    Some(listen)
}

fn tokens_file(field: &Field<'_>, outside: Outside) -> Option<PathBuf> {
    let path = field.absolute_path()?;
    if let Err(wrong) = outside.tokens(&path) {
        field.error(|| wrong);
    }
    Some(path)
}

fn tls(field: &Field<'_>, outside: Outside) -> Option<ApiTls> {
    let section = field.table(&keys::TLS)?;
    let cert = section
        .required("cert", "\"/etc/sluice/cert.pem\"")
        .and_then(|field| field.absolute_path());
    let key = section
        .required("key", "\"/etc/sluice/key.pem\"")
        .and_then(|field| field.absolute_path());
    let client_ca = section.optional("client_ca", |field| field.absolute_path());
    let tls = ApiTls {
        cert: cert?,
        key: key?,
        client_ca: client_ca?,
    };
    if let Err(wrong) = outside.tls(&tls)
        && let Some(field) = section.get(wrong.key())
    {
        field.error(|| wrong.to_string());
    }
    Some(tls)
}
