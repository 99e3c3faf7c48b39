//! The runbook as a page of its own, readable and printable anywhere.

/// The style of the page: nothing from elsewhere, so that it shows and prints on any machine there is that day.
const STYLE: &str = "\
:root { color-scheme: light }
body { font: 11pt/1.45 sans-serif; max-width: 48em; margin: 2em auto; padding: 0 1em; color: #000; background: #fff }
h1 { border-bottom: 3px solid; padding-bottom: .2em }
h2 { border-bottom: 1px solid; margin-top: 1.6em }
code, pre { font-family: monospace; overflow-wrap: anywhere }
pre { border: 1px solid #666; padding: .7em; white-space: pre-wrap; font-size: 10pt }
table { border-collapse: collapse; width: 100% }
th, td { border: 1px solid #666; padding: .3em .5em; text-align: left; vertical-align: top }
li { margin: .25em 0 }
@page { margin: 18mm 15mm }
@media print { body { margin: 0; max-width: none; padding: 0 } h1, h2, h3 { break-after: avoid } pre, tr, li { break-inside: avoid } thead { display: table-header-group } }
";

/// A page of its own, readable and printable anywhere. What looks like HTML in the runbook is text: it comes from
/// components and manifests. There is nothing to click, and nothing is loaded.
pub(crate) fn html(title: &str, markdown: &str) -> String {
    use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd};
    let inert = Parser::new_ext(markdown, Options::ENABLE_TABLES).filter_map(|event| match event {
        Event::Html(text) | Event::InlineHtml(text) => Some(Event::Text(text)),
        Event::Start(Tag::Link { .. } | Tag::Image { .. } | Tag::HtmlBlock)
        | Event::End(TagEnd::Link | TagEnd::Image | TagEnd::HtmlBlock) => None,
        other => Some(other),
    });
    let mut body = String::new();
    pulldown_cmark::html::push_html(&mut body, inert);
    let mut name = String::new();
    pulldown_cmark::html::push_html(&mut name, std::iter::once(Event::Text(CowStr::from(title))));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Recovery of {name}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_the_runbook_says_and_runs_nothing_of_it() {
        let page = html(
            "a<b>",
            "# R\n\n- x <script>alert(1)</script> ![i](http://h/i) [l](javascript:x)\n\n<img src=x onerror=y>\n\n\
             | a | b |\n|---|---|\n| `c<d` | **e** |\n\n```sh\nrun <x>\n```\n",
        );
        for shown in [
            "<title>Recovery of a&lt;b&gt;</title>",
            "<h1>R</h1>",
            "&lt;script&gt;alert(1)&lt;/script&gt; i l",
            "&lt;img src=x onerror=y&gt;",
            "<td><code>c&lt;d</code></td><td><strong>e</strong></td>",
            "run &lt;x&gt;",
        ] {
            assert!(page.contains(shown), "{shown} is not in {page}");
        }
        for never in ["<script", "<img", "<a ", "http://"] {
            assert!(!page.contains(never), "{never} is in {page}");
        }
    }
}
