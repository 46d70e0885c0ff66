package shell

import (
	"fmt"
	"path"
	"strings"
	"time"

	"mvdan.cc/sh/v3/expand"
)

// commandTable is the programs of the machine. Those that need another machine
// fail as they do behind a firewall; those that change the system say that they
// did, or nothing.
func commandTable() map[string]command {
	say := func(text string) command {
		return func(c *call) int { fmt.Fprint(c.std.Out, text); return 0 }
	}
	t := map[string]command{
		// text
		"echo": echo, "printf": printf, "cat": cat, "head": head, "tail": tail, "wc": wc, "grep": grep, "egrep": grep, "fgrep": grep,
		"cut": cut, "sort": sortLines, "uniq": uniq, "tr": tr, "rev": rev, "tee": tee, "seq": seq, "yes": yes, "base64": base64Text,
		"md5sum": sums, "sha1sum": sums, "sha256sum": sums, "xargs": xargs, "awk": awk, "sed": sed, "more": cat, "less": cat, "strings": cat,
		// files
		"ls": ls, "dir": ls, "pwd": pwd, "mkdir": mkdir, "rmdir": rm, "rm": rm, "touch": touch, "cp": cp, "mv": mv, "chmod": chmod,
		"chown": quiet, "chattr": quiet, "lsattr": quiet, "ln": quiet, "stat": statFile, "file": fileKind, "find": find, "basename": basename, "dirname": dirname,
		"readlink": readlink, "realpath": readlink, "mktemp": mktemp, "du": du, "df": df, "mount": mount, "umount": quiet, "sync": quiet, "dd": dd, "tar": quiet, "gzip": quiet, "gunzip": quiet, "unzip": quiet,
		// who and what
		"id": id, "whoami": whoami, "groups": groups, "hostname": hostname, "uname": uname, "arch": say("x86_64\n"), "nproc": say("2\n"), "uptime": uptime, "w": w, "who": who, "last": last, "date": date,
		"ps": ps, "top": top, "free": free, "lscpu": lscpu, "env": env, "printenv": env, "tty": say("/dev/pts/0\n"), "lsb_release": lsbRelease, "dmesg": deniedUnlessRoot, "getconf": say("2\n"),
		"ifconfig": ifconfig, "ip": ipCommand, "netstat": netstat, "ss": netstat, "arp": quiet, "route": route, "crontab": crontab, "lspci": say("00:00.0 Host bridge: Intel Corporation 440FX - 82441FX PMC [Natoma] (rev 02)\n00:03.0 Ethernet controller: Red Hat, Inc. Virtio network device\n"),
		// control
		"true": quiet, "false": func(*call) int { return 1 }, "test": test, "[": test, "sleep": sleep, "which": which, "clear": say("\x1b[H\x1b[2J\x1b[3J"), "stty": quiet, "reset": quiet,
		"kill": quiet, "pkill": quiet, "killall": quiet, "nohup": pass, "nice": pass, "setsid": pass, "timeout": pass, "env-run": pass, "sudo": pass, "su": su, "busybox": busybox, "bash": bash, "sh": bash, "dash": bash,
		"passwd": passwd, "chpasswd": chpasswd, "useradd": deniedUnlessRoot, "usermod": deniedUnlessRoot, "userdel": deniedUnlessRoot, "adduser": deniedUnlessRoot, "iptables": deniedUnlessRoot, "systemctl": systemctl, "service": systemctl,
		"reboot": quiet, "shutdown": quiet, "halt": quiet, "poweroff": quiet, "modprobe": deniedUnlessRoot, "insmod": deniedUnlessRoot, "sysctl": deniedUnlessRoot,
		"apt": apt, "apt-get": apt, "dpkg": apt,
		// the network, which is not there
		"wget": wget, "curl": curl, "tftp": unreachable, "ftpget": unreachable, "ftp": unreachable, "scp": unreachable, "ssh": unreachable, "telnet": unreachable, "nc": unreachable, "ping": ping, "nslookup": lookup, "dig": lookup, "host": lookup,
	}
	return t
}

func echo(c *call) int {
	words, newline, escapes := c.words[1:], true, false
	for len(words) > 0 && len(words[0]) > 1 && words[0][0] == '-' && strings.Trim(words[0][1:], "neE") == "" {
		newline = newline && !strings.Contains(words[0], "n")
		escapes = escapes || strings.Contains(words[0], "e")
		words = words[1:]
	}
	text := strings.Join(words, " ")
	if escapes {
		if formatted, _, err := expand.Format(nil, text, nil); err == nil {
			text = formatted
		}
	}
	if newline {
		text += "\n"
	}
	fmt.Fprint(c.std.Out, text)
	return 0
}

func printf(c *call) int {
	if len(c.words) < 2 {
		fmt.Fprintln(c.std.Err, "-bash: printf: usage: printf [-v var] format [arguments]")
		return 2
	}
	format, arguments := c.words[1], c.words[2:]
	if wideFormat(format) {
		return c.fail(1, "`%s': invalid format character", format[:min(len(format), 64)])
	}
	for {
		text, used, err := expand.Format(nil, format, append([]string{}, arguments...))
		if err != nil {
			return c.fail(1, "%v", err)
		}
		if _, err := fmt.Fprint(c.std.Out, text); err != nil {
			return 1
		}
		arguments = arguments[min(used, len(arguments)):]
		if used == 0 || len(arguments) == 0 {
			return 0
		}
	}
}

// wideFormat finds widths that would make much out of little.
func wideFormat(format string) bool {
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			continue
		}
		digits := 0
		for i++; i < len(format) && strings.IndexByte("0123456789+-# .*'", format[i]) >= 0; i++ {
			if digits++; digits > 4 || format[i] == '*' {
				return true
			}
		}
	}
	return false
}

func sleep(c *call) int {
	if len(c.words) < 2 {
		return c.fail(1, "missing operand")
	}
	d, err := time.ParseDuration(strings.TrimSuffix(c.words[1], "s") + "s")
	if err != nil {
		if d, err = time.ParseDuration(c.words[1]); err != nil {
			return c.fail(1, "invalid time interval ‘%s’", c.words[1])
		}
	}
	c.limits.pause(d)
	return 0
}

// pass runs the command that its words name, after its own options.
func pass(c *call) int {
	rest := c.words[1:]
	for len(rest) > 0 && (strings.HasPrefix(rest[0], "-") || c.words[0] == "timeout" && rest[0] != "" && rest[0][0] >= '0' && rest[0][0] <= '9') {
		if rest[0] == "-n" || rest[0] == "-u" {
			rest = rest[1:]
		}
		rest = rest[min(1, len(rest)):]
	}
	if len(rest) == 0 {
		return 0
	}
	if c.words[0] == "nohup" {
		fmt.Fprintln(c.std.Err, "nohup: ignoring input and appending output to 'nohup.out'")
	}
	return c.runNested(rest)
}

// runNested runs words in a subshell and gives their status.
func (c *call) runNested(words []string) int {
	err := c.nested(func(sub *Shell) error { return sub.invoke(words, c.std) })
	if err != nil {
		return 137 // the bound is met again, and told, at the next step
	}
	return c.status
}

func busybox(c *call) int {
	if len(c.words) < 2 {
		fmt.Fprintln(c.std.Out, "BusyBox v1.35.0 (Debian 1:1.35.0-4+b3) multi-call binary.\nBusyBox is copyrighted by many authors between 1998-2015.\nLicensed under GPLv2. See source distribution for detailed\ncopyright notices.\n\nUsage: busybox [function [arguments]...]")
		return 0
	}
	if _, ok := c.commands[c.words[1]]; !ok {
		fmt.Fprintf(c.std.Err, "%s: applet not found\n", c.words[1])
		return 127
	}
	return c.runNested(c.words[1:])
}

// bash runs a command line, a script, or what comes in.
func bash(c *call) int {
	source, arguments := "", []string{c.words[0]}
	rest := c.words[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") && !strings.Contains(rest[0], "c") {
		rest = rest[1:]
	}
	switch {
	case len(rest) > 1 && strings.HasPrefix(rest[0], "-"):
		source = rest[1]
		arguments = append(arguments, rest[min(3, len(rest)):]...)
	case len(rest) > 0:
		f := c.files.get(c.absolute(rest[0]))
		if f == nil {
			return c.fail(127, "%s: No such file or directory", rest[0])
		}
		source, arguments = f.content, rest
	default:
		source, _ = c.input(nil)
	}
	if len(source) > MaxSource {
		source = source[:MaxSource]
	}
	if err := c.script(source, arguments, c.std); err != nil {
		return 137
	}
	return c.status
}

func su(c *call) int {
	if c.user == "root" {
		return 0
	}
	c.limits.pause(2 * time.Second)
	return c.fail(1, "Authentication failure")
}

func passwd(c *call) int {
	fmt.Fprint(c.std.Err, "New password: ")
	c.input(nil)
	fmt.Fprint(c.std.Err, "\nRetype new password: \npasswd: password updated successfully\n")
	return 0
}

func chpasswd(c *call) int {
	c.input(nil)
	return deniedUnlessRoot(c)
}

func deniedUnlessRoot(c *call) int {
	if c.user == "root" {
		return 0
	}
	return c.fail(1, "Permission denied")
}

func systemctl(c *call) int {
	letters, rest := c.options()
	switch {
	case len(rest) == 0 || strings.Contains(letters, "version"):
		fmt.Fprintln(c.std.Out, "systemd 252 (252.38-1~deb12u1)")
	case rest[0] == "status" && len(rest) > 1:
		fmt.Fprintf(c.std.Out, "● %s.service\n     Loaded: loaded (/lib/systemd/system/%s.service; enabled; preset: enabled)\n     Active: active (running)\n", strings.TrimSuffix(rest[1], ".service"), strings.TrimSuffix(rest[1], ".service"))
	case c.user != "root":
		fmt.Fprintf(c.std.Err, "Failed to %s: Interactive authentication required.\n", strings.Join(rest, " "))
		return 1
	}
	return 0
}

func apt(c *call) int {
	_, rest := c.options()
	if len(rest) == 0 {
		return 0
	}
	if c.user != "root" {
		fmt.Fprintln(c.std.Err, "E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)\nE: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), are you root?")
		return 100
	}
	if rest[0] == "update" {
		c.limits.pause(3 * time.Second)
		fmt.Fprintln(c.std.Out, "Ign:1 http://mirror.internal/debian "+c.cfg.Release.Codename+" InRelease\nErr:1 http://mirror.internal/debian "+c.cfg.Release.Codename+" InRelease\n  Temporary failure resolving 'mirror.internal'\nReading package lists... Done\nBuilding dependency tree... Done\nReading state information... Done\nAll packages are up to date.")
		return 0
	}
	fmt.Fprintln(c.std.Out, "Reading package lists... Done\nBuilding dependency tree... Done\nReading state information... Done")
	for _, name := range rest[1:] {
		fmt.Fprintf(c.std.Err, "E: Unable to locate package %s\n", name)
	}
	return 100
}

// wget fails for want of a network. Where it was to go is in the command, which
// is recorded.
func wget(c *call) int {
	_, rest := c.options()
	if len(rest) == 0 {
		fmt.Fprintln(c.std.Err, "wget: missing URL\nUsage: wget [OPTION]... [URL]...\n\nTry `wget --help' for more options.")
		return 1
	}
	host := hostOf(rest[0])
	fmt.Fprintf(c.std.Err, "--%s--  %s\n", c.cfg.Now().UTC().Format("2006-01-02 15:04:05"), rest[0])
	if isAddress(host) {
		fmt.Fprintf(c.std.Err, "Connecting to %s:80... ", host)
		c.limits.pause(5 * time.Second)
		fmt.Fprint(c.std.Err, "failed: Connection timed out.\nGiving up.\n\n")
		return 4
	}
	fmt.Fprintf(c.std.Err, "Resolving %s (%s)... ", host, host)
	c.limits.pause(2 * time.Second)
	fmt.Fprintf(c.std.Err, "failed: Temporary failure in name resolution.\nwget: unable to resolve host address ‘%s’\n", host)
	return 4
}

func curl(c *call) int {
	_, rest := c.options()
	if len(rest) == 0 {
		fmt.Fprintln(c.std.Err, "curl: try 'curl --help' or 'curl --manual' for more information")
		return 2
	}
	host := hostOf(rest[len(rest)-1])
	if isAddress(host) {
		c.limits.pause(5 * time.Second)
		fmt.Fprintf(c.std.Err, "curl: (28) Failed to connect to %s port 80 after 129876 ms: Couldn't connect to server\n", host)
		return 28
	}
	c.limits.pause(2 * time.Second)
	fmt.Fprintf(c.std.Err, "curl: (6) Could not resolve host: %s\n", host)
	return 6
}

func unreachable(c *call) int {
	c.limits.pause(5 * time.Second)
	return c.fail(1, "Connection timed out")
}

func ping(c *call) int {
	_, rest := c.options()
	if len(rest) == 0 {
		return c.fail(2, "usage error: Destination address required")
	}
	host := rest[len(rest)-1]
	if !isAddress(host) {
		c.limits.pause(2 * time.Second)
		return c.fail(2, "%s: Temporary failure in name resolution", host)
	}
	c.limits.pause(4 * time.Second)
	fmt.Fprintf(c.std.Out, "PING %s (%s) 56(84) bytes of data.\n\n--- %s ping statistics ---\n4 packets transmitted, 0 received, 100%% packet loss, time 3071ms\n\n", host, host, host)
	return 1
}

func lookup(c *call) int {
	c.limits.pause(4 * time.Second)
	fmt.Fprintln(c.std.Out, ";; connection timed out; no servers could be reached")
	return 1
}

// hostOf finds the host in what may be a URL.
func hostOf(text string) string {
	if _, rest, ok := strings.Cut(text, "://"); ok {
		text = rest
	}
	text, _, _ = strings.Cut(text, "/")
	if _, rest, ok := strings.Cut(text, "@"); ok {
		text = rest
	}
	host, _, _ := strings.Cut(text, ":")
	return host
}

func isAddress(host string) bool {
	return host != "" && strings.Trim(host, "0123456789.") == ""
}

func crontab(c *call) int {
	letters, rest := c.options()
	switch {
	case strings.Contains(letters, "l"):
		fmt.Fprintf(c.std.Err, "no crontab for %s\n", c.user)
		return 1
	case len(rest) == 1 && rest[0] == "-" || strings.Contains(letters, "e"):
		c.input(nil)
	}
	return 0
}

func basename(c *call) int {
	if len(c.words) < 2 {
		return c.fail(1, "missing operand")
	}
	name := path.Base(c.words[1])
	if len(c.words) > 2 && name != c.words[2] {
		name = strings.TrimSuffix(name, c.words[2])
	}
	fmt.Fprintln(c.std.Out, name)
	return 0
}

func dirname(c *call) int {
	if len(c.words) < 2 {
		return c.fail(1, "missing operand")
	}
	fmt.Fprintln(c.std.Out, path.Dir(c.words[1]))
	return 0
}
