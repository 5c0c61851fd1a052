use super::*;

fn parse_text(line: &str) -> Result<Request, String> {
    parse(line.split_whitespace().map(OsString::from), true)
}

fn mount(line: &str) -> Mount {
    match parse_text(line) {
        Ok(Request::Mount(mount)) => *mount,
        other => panic!("{line}: {other:?}"),
    }
}

fn with(options: &str) -> Mount {
    mount(&format!("meta:/ /mnt -o {options}"))
}

fn refusal(line: &str) -> String {
    parse_text(line).expect_err(line)
}

#[test]
fn the_defaults_of_root_let_everybody_in_and_check_permissions() {
    let plain = mount("meta:/ /mnt");
    assert_eq!(plain.source.servers, ["meta:7600"]);
    assert_eq!(plain.target, PathBuf::from("/mnt"));
    assert!(plain.allow_other && plain.default_permissions);
    assert_eq!(plain.flags, Flags::default());
    assert_eq!((plain.atime, plain.timeout), (Atime::Relative, Some(Duration::from_secs(60))));
    assert!(!plain.foreground && !plain.fake && plain.log.is_none());
    assert_eq!((plain.cache_bytes, plain.dirty_bytes), (None, None));
}

#[test]
fn another_user_has_to_ask_for_them() {
    let line = || ["meta:/", "/mnt"].map(OsString::from);
    let Ok(Request::Mount(plain)) = parse(line(), false) else { panic!() };
    assert!(!plain.allow_other && !plain.default_permissions);
    let options = ["-o", "allow_other,default_permissions"].map(OsString::from);
    let Ok(Request::Mount(asked)) = parse(line().into_iter().chain(options), false) else { panic!() };
    assert!(asked.allow_other && asked.default_permissions);
}

#[test]
fn the_argument_order_of_mount_and_of_people_is_understood() {
    let expected =
        Mount { flags: Flags { read_only: true, no_exec: true, ..Flags::default() }, ..mount("meta:/ /mnt") };
    for line in [
        "meta:/ /mnt -o ro,noexec",
        "meta:/ /mnt -n -o ro -o noexec",
        "-o ro,noexec meta:/ /mnt",
        "meta:/ -oro,noexec /mnt",
        "meta:/ /mnt -nv -t fuse.dfs -o ro,noexec",
        "meta:/ /mnt -vo ro,noexec -tfuse.dfs",
        "-o ro,noexec -- meta:/ /mnt",
        "meta:/ /mnt -o ,ro,,noexec,",
    ] {
        assert_eq!(mount(line), expected, "{line}");
    }
    assert!(mount("meta:/ /mnt -f").fake);
    assert_eq!(mount("-- meta:/ -odd").target, PathBuf::from("-odd"));
}

#[test]
fn each_flag_and_its_opposite() {
    type Get = fn(&Flags) -> bool;
    let pairs: [(&str, &str, Get); 6] = [
        ("ro", "rw", |flags| flags.read_only),
        ("nodev", "dev", |flags| flags.no_dev),
        ("nosuid", "suid", |flags| flags.no_suid),
        ("noexec", "exec", |flags| flags.no_exec),
        ("sync", "async", |flags| flags.sync),
        ("nodiratime", "diratime", |flags| flags.no_dir_atime),
    ];
    for (on, off, get) in pairs {
        assert!(get(&with(on).flags), "{on}");
        assert!(!get(&with(off).flags), "{off}");
        assert!(!get(&with(&format!("{on},{off}")).flags), "the later one counts");
        assert!(get(&with(&format!("{off},{on}")).flags), "the later one counts");
    }
    assert!(with("dirsync").flags.dir_sync);
}

#[test]
fn access_times_have_three_policies() {
    for (options, atime, no_atime, strict) in [
        ("relatime", Atime::Relative, false, false),
        ("atime", Atime::Relative, false, false),
        ("noatime", Atime::Never, true, false),
        ("strictatime", Atime::Strict, false, true),
        ("noatime,strictatime", Atime::Strict, false, true),
        ("strictatime,noatime", Atime::Never, true, false),
        ("noatime,relatime", Atime::Relative, false, false),
    ] {
        let mount = with(options);
        assert_eq!((mount.atime, mount.flags.no_atime, mount.flags.strict_atime), (atime, no_atime, strict));
    }
}

#[test]
fn options_with_values() {
    assert_eq!(with("timeout=5").timeout, Some(Duration::from_secs(5)));
    assert_eq!(with("timeout=0").timeout, None);
    assert_eq!(with("log=/var/log/dfs.log").log, Some(PathBuf::from("/var/log/dfs.log")));
    assert_eq!(with("log_level=debug").log_level, "debug");
    assert_eq!(with("log_level=\"info,dfs_client=debug\"").log_level, "info,dfs_client=debug");
    for (text, bytes) in
        [("4194304", 4 << 20), ("4096K", 4 << 20), ("64M", 64 << 20), ("2g", 2 << 30), ("16T", 16 << 40)]
    {
        assert_eq!(with(&format!("cache={text}")).cache_bytes, Some(bytes));
        assert_eq!(with(&format!("dirty={text}")).dirty_bytes, Some(bytes));
    }
    assert!(with("foreground").foreground);
    let labels = with("host=a,rack=b,zone=c").labels;
    assert_eq!((labels.host.as_str(), labels.rack.as_str(), labels.zone.as_str()), ("a", "b", "c"));
}

#[test]
fn keys_are_files_by_name_and_a_directory() {
    assert_eq!(mount("meta:/ /mnt").keys, KeyFiles::default());
    let keys = with("key=a:/etc/dfs/a.key,ro,key=b-1:/x:y,keys=/etc/dfs/keys,key=a:/later").keys;
    let files = [("a", "/later"), ("b-1", "/x:y")].map(|(name, file)| (name.to_owned(), PathBuf::from(file)));
    assert_eq!(keys.files, files.into());
    assert_eq!(keys.directory, Some(PathBuf::from("/etc/dfs/keys")));
    assert_eq!(
        with("\"key=a:/x,y\"").keys.files["a"],
        PathBuf::from("/x,y"),
        "a comma in quotes, as in fstab"
    );
}

#[test]
fn what_everybody_is_handed_is_passed_over() {
    let options = "defaults,_netdev,auto,noauto,nofail,nouser,x-systemd.automount,\
                   x-systemd.mount-timeout=30,X-mount.mkdir,comment=anything,comment,silent,uhelper=x,helper=x,\
                   user_id=0,group_id=0,rootmode=40000,max_read=131072";
    assert_eq!(with(options), mount("meta:/ /mnt"));
}

#[test]
fn user_mounts_are_as_careful_as_mount_makes_them() {
    let all = Flags { no_dev: true, no_suid: true, no_exec: true, ..Flags::default() };
    assert_eq!(with("user").flags, all);
    assert_eq!(with("users").flags, all);
    assert_eq!(with("user=alice,nodev,nosuid,noexec").flags, all);
    assert_eq!(with("user,exec").flags, Flags { no_exec: false, ..all });
    assert_eq!(with("owner").flags, Flags { no_exec: false, ..all });
    assert_eq!(with("group").flags, Flags { no_exec: false, ..all });
}

#[test]
fn remount_changes_flags_alone() {
    let request = parse_text("meta:/ /mnt -o remount,ro,noexec,timeout=3").unwrap();
    let flags = Flags { read_only: true, no_exec: true, ..Flags::default() };
    assert_eq!(request, Request::Remount { target: "/mnt".into(), flags });
    assert!(refusal("meta:/ /mnt -o remount,frobnicate").contains("\"frobnicate\""));
}

#[test]
fn unknown_options_are_refused_by_name() {
    for (options, name) in [
        ("frobnicate", "\"frobnicate\""),
        ("ro,frobnicate=3", "\"frobnicate\""),
        ("foreground=1", "\"foreground\""),
        ("timeout", "\"timeout\""),
        ("cache", "\"cache\""),
        ("key", "\"key\""),
        ("acl", "\"acl\""),
        ("context=\"a,b\"", "\"context\""),
        ("RO", "\"RO\""),
    ] {
        let told = refusal(&format!("meta:/ /mnt -o {options}"));
        assert!(told.contains("unknown mount option") && told.contains(name), "{told}");
    }
    assert_eq!(mount("meta:/ /mnt -s -o frobnicate,ro").flags, with("ro").flags, "-s is sloppy");
}

#[test]
fn wrong_values_are_refused_by_name() {
    for bad in [
        "timeout=-1",
        "timeout=",
        "timeout=1m",
        "timeout=99999999999",
        "log=relative",
        "log=",
        "log_level=",
        "cache=",
        "cache=0",
        "cache=4095K",
        "cache=17T",
        "cache=99999999999999999999",
        "cache=18446744073709551615T",
        "cache=M",
        "cache=-1",
        "dirty=1Q",
        "host=",
        "zone=",
        "key=",
        "key=/etc/dfs/a.key",
        "key=a",
        "key=a:",
        "key=a:relative",
        "key=:/a.key",
        "key=none:/a.key",
        "key=.a:/a.key",
        "keys=",
        "keys=relative",
    ] {
        let told = refusal(&format!("meta:/ /mnt -o {bad}"));
        let name = bad.split('=').next().unwrap();
        assert!(told.contains(name), "{bad}: {told}");
    }
    assert!(refusal("meta:/ /mnt -o ro,\"x").contains("quote"));
}

#[test]
fn wrong_command_lines_are_refused_with_a_sentence() {
    for (line, told) in [
        ("", "a source and a mount point"),
        ("meta:/", "a source and a mount point"),
        ("meta:/ /mnt /third", "a source and a mount point"),
        ("meta /mnt", "is not a dfs source"),
        ("meta:/ /mnt -o", "-o lacks"),
        ("meta:/ /mnt -t", "-t lacks"),
        ("meta:/ /mnt -t ext4", "ext4"),
        ("meta:/ /mnt -x", "-x"),
        ("meta:/ /mnt -N /proc/1/ns/mnt", "-N"),
        ("meta:/ /mnt --frobnicate", "--frobnicate"),
    ] {
        let reason = refusal(line);
        assert!(reason.contains(told), "{line:?}: {reason}");
    }
    let empty = parse(["meta:/", ""].map(OsString::from), true).unwrap_err();
    assert!(empty.contains("mount point is empty"));
}

#[test]
fn help_and_version_win() {
    assert_eq!(parse_text("--help"), Ok(Request::Help));
    assert_eq!(parse_text("-h"), Ok(Request::Help));
    assert_eq!(parse_text("meta:/ /mnt -V"), Ok(Request::Version));
    assert_eq!(parse_text("--version"), Ok(Request::Version));
}
