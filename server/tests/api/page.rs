//! The page as a browser gets it, without the browser.

use crate::server::{Options, Server};

#[test]
fn the_page_comes_with_its_policy_and_is_not_sent_twice() {
    let server = Server::with(Options::default());
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").expect("a policy").to_owned();
    assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let text = page.text();
    let files: Vec<&str> = text.split('"').filter(|name| name.starts_with("/page/")).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let reply = server.get(file);
        assert_eq!((reply.status, reply.header("x-content-type-options")), (200, Some("nosniff")), "{file}");
        let tag = reply.header("etag").expect("a tag");
        let again = server.connect().send("GET", file, &[("if-none-match", tag)], b"");
        assert_eq!((again.status, again.text().len()), (304, 0), "{file}");
        assert_eq!(again.header("etag"), Some(tag));
    }
    let head = server.connect().send("HEAD", "/", &[], b"");
    assert_eq!((head.status, head.header("etag")), (200, page.header("etag")));
}
