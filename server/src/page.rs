//! The page at `/`: files that are part of the binary, without a build step and without a request to anywhere else.
//!
//! They are open without a key, since they tell nothing; what they ask the server needs one as ever. The policy lets
//! the browser run the page's own modules and nothing else, so that a text that slipped through as markup would still
//! be dead.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};

use crate::body::{Response, whole};

/// A file of the page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asset {
    path: &'static str,
    media: &'static str,
    data: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

macro_rules! asset {
    ($path:literal, $media:expr, $file:literal) => {
        Asset { path: $path, media: $media, data: include_str!(concat!("../page/", $file)) }
    };
}

static ASSETS: [Asset; 11] = [
    asset!("/", HTML, "index.html"),
    asset!("/page/icon.svg", "image/svg+xml", "icon.svg"),
    asset!("/page/base.css", STYLE, "base.css"),
    asset!("/page/cards.css", STYLE, "cards.css"),
    asset!("/page/app.js", SCRIPT, "app.js"),
    asset!("/page/answer.js", SCRIPT, "answer.js"),
    asset!("/page/cards.js", SCRIPT, "cards.js"),
    asset!("/page/dom.js", SCRIPT, "dom.js"),
    asset!("/page/history.js", SCRIPT, "history.js"),
    asset!("/page/stream.js", SCRIPT, "stream.js"),
    asset!("/page/votes.js", SCRIPT, "votes.js"),
];

const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// The file at a path.
pub(crate) fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

/// The file, or 304 where the browser has it already.
pub(crate) fn serve(asset: &'static Asset, headers: &HeaderMap) -> Response {
    let hash = Sha256::digest(asset.data);
    let tag: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{tag}\"");
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let known = known.is_some_and(|list| list.split(',').any(|other| other.trim() == tag));
    let mut response = if known {
        whole(StatusCode::NOT_MODIFIED, asset.media, Bytes::new())
    } else {
        whole(StatusCode::OK, asset.media, asset.data)
    };
    let fixed = [
        (CONTENT_TYPE, asset.media),
        // Asked for each time, answered with 304: after an update all files are of the same version.
        (CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("content-security-policy"), POLICY),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file of the page refers to is there, and everything that is there is referred to.
    #[test]
    fn the_page_is_whole() {
        let mut seen = std::collections::BTreeSet::from(["/"]);
        for asset in &ASSETS {
            for name in asset.data.split(['"', '\'']) {
                let path = match name.strip_prefix("./") {
                    Some(module) if asset.media == SCRIPT => format!("/page/{module}"),
                    _ if name.starts_with("/page/") => name.to_owned(),
                    _ => continue,
                };
                let file = find(&path).unwrap_or_else(|| panic!("{} refers to {path}", asset.path));
                seen.insert(file.path);
            }
        }
        assert_eq!(seen.len(), ASSETS.len(), "{seen:?}");
    }

    /// Nothing that the policy would stop, and no request to anywhere else.
    #[test]
    fn the_page_keeps_to_its_policy() {
        for Asset { path, data, .. } in &ASSETS {
            let namespace = data.replace("http://www.w3.org/2000/svg", "");
            for wrong in [
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "eval(",
                "style=\"",
                "onclick=\"",
                "url(http",
                "http://",
            ] {
                assert!(!namespace.contains(wrong), "{path}: {wrong}");
            }
            assert_eq!(data.matches("<script").count(), data.matches("<script type=\"module\" src=").count());
        }
    }
}
