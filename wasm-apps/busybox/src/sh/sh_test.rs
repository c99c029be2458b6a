use super::*;
use crate::sh::streams::Output;

fn sh(text: &str, input: &str) -> (String, i32) {
    let kept = Kept::default();
    let mut cx = Cx::of_process();
    cx.cwd = "/".to_owned();
    cx.env =
        [("NAME".to_owned(), "a b".to_owned()), ("HOME".to_owned(), "/home".to_owned())].into();
    cx.input = Input::new(io::Cursor::new(input.as_bytes().to_vec()));
    cx.output = kept.output();
    cx.error = Output::new(io::sink());
    let code = main(&mut cx, &["sh".to_owned(), "-c".to_owned(), text.to_owned()]);
    (String::from_utf8(kept.take()).unwrap(), code)
}

#[track_caller]
fn all(cases: &[(&str, &str, i32)]) {
    for (text, wanted, code) in cases {
        assert_eq!(sh(text, "a\nb\n"), ((*wanted).to_owned(), *code), "{text}");
    }
}

#[test]
fn lists_pipelines_and_quotes() {
    all(&[
        ("echo one; echo two", "one\ntwo\n", 0),
        ("false && echo no || echo yes", "yes\n", 0),
        ("true || echo no; echo $?", "0\n", 0),
        ("echo $NAME '$NAME' \"$NAME\"x", "a b $NAME a bx\n", 0),
        ("cat | wc -l", "2\n", 0),
        ("cat | grep -v b | cat", "a\n", 0),
        ("exit 3; echo no", "", 3),
        ("x=1 env | grep x; echo $x.", "x=1\n.\n", 0),
        ("y=5; echo ${y}0 ${z:-none}", "50 none\n", 0),
        ("echo $(echo a; echo b) \"$(exit 4)\"", "a b \n", 0),
        ("! true", "", 1),
        ("echo abcdef | head -c 3", "abc", 0),
        ("echo abcdef | tail -c3; echo abc | head -c 9", "ef\nabc\n", 0),
        ("cat | head -n1; echo a | head -f", "a\na\n", 0),
        ("nothing", "", 127),
        ("echo a 2>&1 >/dev/null; echo b", "b\n", 0),
        ("echo a >&2; echo b 1>&2; echo c", "c\n", 0),
        ("echo 'open", "", 2),
        ("# nothing\necho a # b\n", "a\n", 0),
        ("echo if then done '(x)' \"(y)\"", "if then done (x) (y)\n", 0),
        ("echo a \\\n  b", "a b\n", 0),
        ("echo `echo a \\`echo b\\``", "a b\n", 0),
        ("echo \"a\\$b\" 'c\"d' \"e'f\"", "a$b c\"d e'f\n", 0),
        ("cat <<EOF\n$NAME $(echo x)\n  y\nEOF\necho z", "a b x\n  y\nz\n", 0),
        ("cat <<'EOF' | wc -l\n$NAME\nEOF\n", "1\n", 0),
        ("cat <<-EOF\n\tin\n\tEOF\necho z", "in\nz\n", 0),
    ]);
}

#[test]
fn tests_loops_and_choices() {
    all(&[
        ("if true; then echo yes; else echo no; fi", "yes\n", 0),
        ("if false; then :; elif [ a = a ]; then echo two; else echo no; fi", "two\n", 0),
        ("if false; then echo no; fi; echo $?", "0\n", 0),
        ("for f in a \"b c\" $NAME; do echo \"<$f>\"; done", "<a>\n<b c>\n<a>\n<b>\n", 0),
        ("set -- x 'y z'; for p; do echo \"$p\"; done; echo $# $2", "x\ny z\n2 y z\n", 0),
        ("set -- x 'y z'; for p in \"$@\"; do echo \"$p\"; done", "x\ny z\n", 0),
        ("for p in \"$@\"; do echo no; done; echo end", "end\n", 0),
        ("i=0; while [ $i -lt 3 ]; do i=$((i+1)); echo $i; done", "1\n2\n3\n", 0),
        ("i=0; until [ $i -ge 2 ]; do i=$((i + 1)); done; echo $i", "2\n", 0),
        ("while read -r l; do echo \"[$l]\"; done", "[a]\n[b]\n", 0),
        ("cat | while read l; do echo $l$l; done", "aa\nbb\n", 0),
        ("while true; do echo a; break; done; echo b", "a\nb\n", 0),
        ("for i in 1 2 3; do [ $i = 2 ] && continue; echo $i; done", "1\n3\n", 0),
        ("for i in 1 2; do for j in 1 2; do break 2; done; echo no; done; echo end", "end\n", 0),
        ("for i in 1 2; do for j in 1 2; do continue 2; done; echo no; done; echo end", "end\n", 0),
        ("case abc in x|a*) echo fits;; *) echo no;; esac", "fits\n", 0),
        (
            "case $NAME in 'a b') echo one ;; esac; case x in y) echo no;; esac; echo $?",
            "one\n0\n",
            0,
        ),
        ("case '*' in '\\*') echo no;; \"*\") echo star;; esac", "star\n", 0),
        ("{ echo a; echo b; } | wc -l", "2\n", 0),
        ("(x=1; cd /tmp; exit 3); echo $? $x $PWD.", "3 .\n", 0),
        (
            "while true; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done | head -n 1 | wc -l",
            "1\n",
            0,
        ),
    ]);
}

#[test]
fn functions_and_what_changes_the_shell() {
    all(&[
        ("f() { echo \"$1-$#\"; return 4; }; f x y; echo $?", "x-2\n4\n", 0),
        ("f() { local a=2; echo $a; }; a=1; f; echo $a", "2\n1\n", 0),
        ("f() { f; }; f; echo never", "", 2),
        ("eval 'x=1; echo $x'", "1\n", 0),
        ("set -e; false; echo never", "", 1),
        ("set -e; if false; then :; fi; false || true; ! true; echo on", "on\n", 0),
        ("set -u; echo $nothing; echo never", "", 2),
        ("set -o pipefail; false | true; echo $?", "1\n", 0),
        ("trap 'echo bye' EXIT; echo hi; exit 3", "hi\nbye\n", 3),
        ("export A=\"x  y\"; echo \"$A\"; unset A; echo \"[$A]\"", "x  y\n[]\n", 0),
        ("echo 'a b c' | { read x y; echo \"$y\"; }", "b c\n", 0),
        ("IFS=:; echo a:b:c | { read x y; echo \"$y\"; }", "b:c\n", 0),
        ("set -- a b c; shift; echo $1 $#", "b 2\n", 0),
        ("command -v echo nothing; echo $?", "echo\n127\n", 0),
        ("sleep 0 & wait; echo done", "done\n", 0),
        ("x=$(exit 7); echo $?", "7\n", 0),
        ("exec echo last; echo never", "last\n", 0),
    ]);
}

#[test]
fn what_a_tool_does_not_have_it_refuses() {
    for line in [
        "grep -A1 x /",
        "sort --nope",
        "date -d yesterday",
        "printf %f 1",
        "sed -z s/a/b/",
        "ls -R",
        "mkdir -m 755 x",
        "test a -nt b",
        "find / -exec ls",
    ] {
        let (text, code) = sh(line, "");
        assert!(text.is_empty() && code != 0, "{line}: {text:?} {code}");
    }
    assert_eq!(sh("ls -la /nowhere; grep -qi B", "b\n"), (String::new(), 0));
}

#[test]
fn values_are_replaced_cut_and_counted() {
    all(&[
        (
            "f=/a/b.tar.gz; echo ${f##*/} ${f%.*} ${f%%.*} ${f#/a/} ${#f}",
            "b.tar.gz /a/b.tar /a/b b.tar.gz 11\n",
            0,
        ),
        ("echo ${x:=5} $x ${x:+set} ${none+no}.", "5 5 set .\n", 0),
        ("echo ${NAME:-x} ${none:-\"a  b\"} ${none:-$NAME}", "a b a  b a b\n", 0),
        ("echo ${none:?is missing}; echo never", "", 2),
        ("echo $((2 * (3 + 4))) $(( $(echo 2) << 2 ))", "14 8\n", 0),
        ("i=1; echo $((i++)) $i $((i += 5))", "1 2 7\n", 0),
        ("echo $((1 / 0)); echo never", "", 2),
        ("echo ~ ~/x", "/home /home/x\n", 0),
        ("x='*'; echo \"$x\" '?'", "* ?\n", 0),
        ("IFS=:; x=a::b:c; set -- $x; echo $# \"$2\" $3", "4  b\n", 0),
        (
            "IFS=' :'; x=' a : b c '; set -- $x; echo $#; IFS=''; x='a b'; set -- $x; echo $#",
            "3\n1\n",
            0,
        ),
        ("echo a\\ b \"c\\\\d\"", "a b c\\d\n", 0),
    ]);
}

#[test]
fn a_text_that_cannot_be_read_runs_nothing_of_it() {
    for text in [
        "echo ran; if true; then echo body",
        "echo ran; fi",
        "echo ran && ",
        "echo ran; for x in a; do echo; ",
        "echo ran; [[ a = b ]]",
        "echo ran; sleep 1 & echo more",
        "echo ran | | cat",
        "echo ran; ${x!y}",
        "echo ran; (echo",
        "echo ran; case x in x) echo",
        "echo ran; cat <<EOF\nno end",
        "echo ran; select x in a; do :; done",
    ] {
        assert_eq!(sh(text, ""), (String::new(), SYNTAX), "{text}");
    }
    let deep = "{ ".repeat(1000) + "echo ran" + &"; }".repeat(1000);
    assert_eq!(sh(&deep, "").1, SYNTAX);
    let deep = format!("echo {}", "$(echo ".repeat(200) + &")".repeat(200));
    assert_eq!(sh(&deep, "").0, "\n");
}

#[test]
fn files_take_streams_and_fit_patterns() {
    let folder = std::env::temp_dir().join(format!("busybox-sh-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let at = folder.to_str().unwrap();
    let text = format!(
        "cd {at} && echo a > x.txt && echo b >> x.txt && echo c > y.txt && cat < x.txt && echo *.txt \
         [xz].t?t none* '*' && pwd"
    );
    assert_eq!(sh(&text, ""), (format!("a\nb\nx.txt y.txt x.txt none* *\n{at}\n"), 0));
    assert_eq!(sh(&format!("ls {at}/none 2>&1 | wc -l"), ""), ("1\n".to_owned(), 0));
    let text = format!(
        "cd {at}; for f in *.txt; do echo $f; done > list; while read f; do cat $f; done < list; \
         {{ echo out; ls none; }} &> both; wc -l < both"
    );
    assert_eq!(sh(&text, ""), ("a\nb\nc\n2\n".to_owned(), 0));
    assert_eq!(sh(&format!("cd {at}; exec > z; echo kept; cat z >&2"), ""), (String::new(), 0));
    assert_eq!(
        sh(&format!("cat {at}/z; echo 'echo $1' > {at}/s; sh {at}/s one"), "").0,
        "kept\none\n"
    );
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn lines_of_input_are_commands_and_their_input() {
    let kept = Kept::default();
    let mut cx = Cx::of_process();
    let input =
        "x=1\nif [ $x = 1 ]\nthen echo one\nfi\nread y\nhello\necho $y\nexit 5\necho never\n";
    cx.input = Input::new(io::Cursor::new(input));
    cx.output = kept.output();
    assert_eq!(main(&mut cx, &["sh".to_owned()]), 5);
    assert_eq!(String::from_utf8(kept.take()).unwrap(), "one\nhello\n");
}
