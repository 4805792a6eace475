//! A published log as static files: C2SP tlog-tiles, "Log API".

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;

use crate::server::{Reply, TEXT, refuse, reply, serve};

/// The largest file of a log: an entry bundle of 256 of the longest leaves.
const MAX_FILE_BYTES: u64 = 256 * (65_535 + 2);
const MAX_PATH_BYTES: usize = 128;

/// Serves the log in `directory` to anybody until the task is dropped:
/// `checkpoint`, `checkpoint.witnessed` and everything under `tile/`.
pub async fn serve_log(listener: TcpListener, directory: &Path) {
    let directory: Arc<Path> = directory.into();
    serve(listener, move |request| answer(Arc::clone(&directory), request)).await;
}

async fn answer(directory: Arc<Path>, request: Request<Incoming>) -> Reply {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "method: expected GET or HEAD");
    }
    let Some(kind) = Kind::of(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "path: expected a file of a tlog-tiles log");
    };
    let path = directory.join(request.uri().path().trim_start_matches('/'));
    let read = tokio::task::spawn_blocking(move || read_bounded(path)).await;
    match read {
        Ok(Ok(Some(bytes))) => reply(StatusCode::OK, kind.content_type(), kind.cache(), bytes),
        Ok(Ok(None)) => refuse(StatusCode::NOT_FOUND, "the log has no such file"),
        Ok(Err(error)) => {
            tracing::warn!(%error, "reading a file of the log");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the file cannot be read")
        }
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the file cannot be read"),
    }
}

fn read_bounded(path: PathBuf) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && found.len() <= MAX_FILE_BYTES => {
            std::fs::read(path).map(Some)
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Checkpoint,
    Tile,
}

impl Kind {
    /// The kind of file that `path` names, if a log has such files.
    fn of(path: &str) -> Option<Self> {
        if path.len() > MAX_PATH_BYTES {
            return None;
        }
        let path = path.strip_prefix('/')?;
        if matches!(path, "checkpoint" | "checkpoint.witnessed") {
            return Some(Self::Checkpoint);
        }
        let (level, index) = path.strip_prefix("tile/")?.split_once('/')?;
        let known = level == "entries" || is_number(level, 63);
        let (index, width) = match index.split_once(".p/") {
            Some((index, width)) => (index, is_number(width, 255) && width != "0"),
            None => (index, true),
        };
        let mut groups = index.split('/').rev();
        let last = groups.next().is_some_and(is_group);
        let above = groups.all(|group| group.strip_prefix('x').is_some_and(is_group));
        (known && width && last && above).then_some(Self::Tile)
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Checkpoint => TEXT,
            Self::Tile => "application/octet-stream",
        }
    }

    fn cache(self) -> &'static str {
        match self {
            Self::Checkpoint => "no-store",
            Self::Tile => "public, max-age=604800, immutable",
        }
    }
}

fn is_group(text: &str) -> bool {
    text.len() == 3 && text.bytes().all(|digit| digit.is_ascii_digit())
}

fn is_number(text: &str, most: u8) -> bool {
    text.parse::<u8>().is_ok_and(|number| number <= most && number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_log_have_a_path() {
        for good in ["/tile/0/x001/x234/067", "/tile/63/000", "/tile/entries/000.p/255"] {
            assert_eq!(Kind::of(good), Some(Kind::Tile), "{good}");
        }
        assert_eq!(Kind::of("/checkpoint"), Some(Kind::Checkpoint));
        for bad in [
            "",
            "/",
            "checkpoint",
            "//checkpoint",
            "/checkpoint/",
            "/wal/00000000000000000000.wal",
            "/tile/64/000",
            "/tile/00/000",
            "/tile/0/..",
            "/tile/0/../../checkpoint",
            "/tile/0/0",
            "/tile/0/x001",
            "/tile/0/001/002",
            "/tile/0/000.p/0",
            "/tile/0/000.p/256",
            "/tile/0/000.p/01",
            "/tile/0/000.p/",
            "/tile/entries/",
            "/tile/data/000",
            "/lock",
            "/tile/0/%30%30%30",
        ] {
            assert_eq!(Kind::of(bad), None, "{bad}");
        }
    }
}
