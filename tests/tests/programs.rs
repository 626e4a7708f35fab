//! Real programs on the mount: git, a C and a Rust build, SQLite.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::wait::seconds;
use holdfast_tests::{Claim, Room, Run, claims, tree};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    180 => git_clones_commits_repacks_and_finds_no_fault,
    120 => a_c_project_builds_and_rebuilds_only_what_changed,
    180 => a_rust_project_builds_and_runs,
    120 => sqlite_keeps_its_integrity_with_a_rollback_journal,
    120 => sqlite_keeps_its_integrity_with_a_write_ahead_log,
    60 => two_sqlite_writers_exclude_each_other,
];

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

fn git(arguments: &str, within: &Path) -> String {
    Run::new("git")
        .args(["-c", "user.name=Tester", "-c", "user.email=tester@example.invalid", "-c", "gc.auto=0"])
        .args(arguments.split(' '))
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .within(within)
        .limit(seconds(100))
        .ok()
}

fn git_clones_commits_repacks_and_finds_no_fault(room: &mut Room) {
    let (d, local) = (room.directory(), room.local_directory());
    tree::real_sources(&local, 600);
    git("init -q --initial-branch=main .", &local);
    git("add --all", &local);
    git("commit -q -m Sources", &local);
    for change in 0..5 {
        fs::write(local.join("changing"), format!("change {change}\n")).unwrap();
        git("add changing", &local);
        git(&format!("commit -q -m Change{change}"), &local);
    }
    let source = format!("file://{}", local.display());
    git(&format!("clone -q {source} clone"), &d);
    let clone = d.join("clone");
    git("fsck --full --strict", &clone);
    assert_eq!(git("status --porcelain", &clone), "");
    fs::write(clone.join("changing"), "here\n").unwrap();
    assert_eq!(git("status --porcelain", &clone), " M changing\n");
    git("commit -q -a -m Here", &clone);
    git("checkout -q -b other HEAD~3", &clone);
    git("checkout -q main", &clone);
    git("gc -q --prune=now", &clone);
    git("fsck --full --strict", &clone);
    assert_eq!(git("rev-list --count HEAD", &clone).trim(), "7");
    // A clone beside it shares objects by hard links.
    git("clone -q clone second", &d);
    git("fsck --full --strict", &d.join("second"));
    assert_eq!(git("rev-parse HEAD", &d.join("second")), git("rev-parse HEAD", &clone));
}

const MAKEFILE: &str = "CFLAGS = -O1 -Wall -MMD
OBJECTS = $(patsubst %.c,%.o,$(wildcard part*.c))
program: main.o libparts.a
\t$(CC) -o $@ $^
libparts.a: $(OBJECTS)
\t$(AR) rcs $@ $^
-include *.d
";

fn a_c_project_builds_and_rebuilds_only_what_changed(room: &mut Room) {
    let d = room.directory();
    const PARTS: usize = 40;
    let mut header = String::from("#pragma once\n");
    let mut sum = String::new();
    for part in 0..PARTS {
        header.push_str(&format!("int part{part}(int);\n"));
        sum.push_str(&format!(" + part{part}(1)"));
        let text = format!("#include \"parts.h\"\nint part{part}(int x) {{ return x + {part}; }}\n");
        fs::write(d.join(format!("part{part}.c")), text).unwrap();
    }
    fs::write(d.join("parts.h"), header).unwrap();
    fs::write(
        d.join("main.c"),
        format!(
            "#include <stdio.h>\n#include \"parts.h\"\nint main(void) {{ printf(\"%d\\n\", 0{sum}); return 0; }}\n"
        ),
    )
    .unwrap();
    fs::write(d.join("Makefile"), MAKEFILE).unwrap();
    let make = || Run::new("make").args(["-j4", "program"]).within(&d).ok();
    assert_eq!(make().matches("-c").count(), PARTS + 1);
    let expected: usize = (0..PARTS).map(|part| part + 1).sum();
    assert_eq!(Run::new("./program").within(&d).ok().trim(), expected.to_string());
    assert!(make().contains("is up to date"), "nothing changed");
    fs::write(d.join("part7.c"), "#include \"parts.h\"\nint part7(int x) { return x + 1007; }\n").unwrap();
    assert_eq!(make().matches("-c").count(), 1, "one file changed");
    assert_eq!(Run::new("./program").within(&d).ok().trim(), (expected + 1000).to_string());
}

fn a_rust_project_builds_and_runs(room: &mut Room) {
    let d = room.directory();
    let dependency = tree::registry_sources()
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("itoa-")));
    let dependency = dependency.expect("serde_json brings itoa into the registry");
    fs::create_dir_all(d.join("src")).unwrap();
    fs::create_dir_all(d.join("itoa")).unwrap();
    Run::new("cp").arg("-a").arg(dependency.join("src")).arg(d.join("itoa/src")).ok();
    // Its own manifest names optional dependencies, which cargo would want to look up.
    fs::write(d.join("itoa/Cargo.toml"), "[package]\nname = \"itoa\"\nversion = \"1.0.0\"\nedition = \"2021\"\n")
        .unwrap();
    let manifest = "[package]\nname = \"sample\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
                    [dependencies]\nitoa = { path = \"itoa\" }\n[workspace]\n";
    fs::write(d.join("Cargo.toml"), manifest).unwrap();
    fs::write(d.join("build.rs"), "fn main() { println!(\"cargo:rustc-env=BUILT=on a volume\"); }\n").unwrap();
    fs::write(d.join("src/part.rs"), "pub fn answer() -> u64 { (1..=20).product() }\n").unwrap();
    let main =
        "mod part;\nfn main() { println!(\"{} {}\", env!(\"BUILT\"), itoa::Buffer::new().format(part::answer())); }\n";
    fs::write(d.join("src/main.rs"), main).unwrap();
    let cargo = |arguments: &str| {
        // What cargo told this test program must not reach the cargo that it starts.
        let mut run = Run::new("cargo").args(arguments.split(' ')).within(&d).limit(seconds(150));
        for (name, value) in [("CARGO_TARGET_DIR", "target"), ("RUSTFLAGS", ""), ("CARGO_INCREMENTAL", "1")] {
            run = run.env(name, value);
        }
        run.ok()
    };
    cargo("build --offline --quiet");
    assert_eq!(cargo("run --offline --quiet").trim(), "on a volume 2432902008176640000");
    fs::write(d.join("src/part.rs"), "pub fn answer() -> u64 { 42 }\n").unwrap();
    assert_eq!(cargo("run --offline --quiet").trim(), "on a volume 42");
}

fn sqlite(database: &Path, script: &str) -> String {
    Run::new("sqlite3").arg("-bail").arg(database).arg(script).limit(seconds(60)).ok()
}

fn fill_and_check(database: &Path, mode: &str) {
    let answer = sqlite(
        database,
        &format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v BLOB); CREATE INDEX i ON t(k);"
        ),
    );
    assert!(answer.contains(mode), "SQLite chose another journal: {answer}");
    for batch in 0..20 {
        let first = batch * 500;
        let script = format!(
            "PRAGMA synchronous=FULL; BEGIN; WITH RECURSIVE n(x) AS (SELECT {first} UNION ALL SELECT x + 1 FROM n WHERE x < {last}) \
             INSERT INTO t SELECT x, hex(x * 7919 % 10000), randomblob(100 + x % 300) FROM n; \
             UPDATE t SET v = randomblob(50) WHERE id % 17 = {batch}; DELETE FROM t WHERE id % 100 = {batch}; COMMIT;",
            last = first + 499
        );
        sqlite(database, &script);
    }
    assert_eq!(sqlite(database, "PRAGMA integrity_check;").trim(), "ok");
    let counted = sqlite(database, "SELECT count(*), min(id), max(id) FROM t;");
    sqlite(database, "VACUUM;");
    assert_eq!(sqlite(database, "SELECT count(*), min(id), max(id) FROM t;"), counted);
    assert_eq!(sqlite(database, "PRAGMA integrity_check;").trim(), "ok");
    // A transaction that was not finished leaves nothing.
    sqlite(database, "BEGIN; DELETE FROM t; ROLLBACK;");
    assert_eq!(sqlite(database, "SELECT count(*), min(id), max(id) FROM t;"), counted);
}

fn sqlite_keeps_its_integrity_with_a_rollback_journal(room: &mut Room) {
    fill_and_check(&room.directory().join("test.db"), "delete");
}

fn sqlite_keeps_its_integrity_with_a_write_ahead_log(room: &mut Room) {
    fill_and_check(&room.directory().join("test.db"), "wal");
}

fn two_sqlite_writers_exclude_each_other(room: &mut Room) {
    let d = room.directory();
    sqlite(&d.join("test.db"), "CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (0);");
    let add = "for i in $(seq 40); do sqlite3 -cmd '.timeout 30000' test.db 'UPDATE t SET n = n + 1'; done";
    Run::shell(&format!("({add}) & ({add}) & wait")).within(&d).limit(seconds(50)).ok();
    assert_eq!(sqlite(&d.join("test.db"), "SELECT n FROM t; PRAGMA integrity_check;"), "80\nok\n");
}
