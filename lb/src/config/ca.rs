//! Certificates that those of backends must be signed by.

use std::path::{Path, PathBuf};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject},
    },
};

/// Why a file of certificates is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot read the certificates in {}: {source}; on most systems those of public authorities are in \"/etc/ssl/certs/ca-certificates.crt\"", path.display())]
    Unreadable { path: PathBuf, source: pem::Error },
    #[error("{} holds no certificate in PEM, which begins with \"-----BEGIN CERTIFICATE-----\"", path.display())]
    Empty { path: PathBuf },
    #[error("a certificate in {} makes no sense: {source}", path.display())]
    Invalid {
        path: PathBuf,
        source: rustls::Error,
    },
}

/// The certificates in a file.
pub fn read_ca(path: &Path) -> Result<RootCertStore, CaError> {
    let unreadable = |source| CaError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots
            .add(certificate.map_err(unreadable)?)
            .map_err(|source| CaError::Invalid {
                path: path.to_owned(),
                source,
            })?;
    }
    if roots.is_empty() {
        return Err(CaError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(roots)
}
