package shell

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Release is the distribution that a machine pretends to run.
type Release struct {
	ID, Name, Pretty, Version, Codename string
	Kernel, Build                       string // uname -r and uname -v
}

// ReleaseOf guesses the release that goes with what an SSH server says of itself.
func ReleaseOf(banner string) Release {
	switch {
	case strings.Contains(banner, "Ubuntu") && strings.Contains(banner, "9.6p1"):
		return Release{"ubuntu", "Ubuntu", "Ubuntu 24.04.2 LTS", "24.04", "noble",
			"6.8.0-60-generic", "#63-Ubuntu SMP PREEMPT_DYNAMIC Tue Apr 15 19:04:15 UTC 2025"}
	case strings.Contains(banner, "Ubuntu") && strings.Contains(banner, "8.2p1"):
		return Release{"ubuntu", "Ubuntu", "Ubuntu 20.04.6 LTS", "20.04", "focal",
			"5.4.0-216-generic", "#236-Ubuntu SMP Fri Apr 11 19:53:21 UTC 2025"}
	case strings.Contains(banner, "Ubuntu"):
		return Release{"ubuntu", "Ubuntu", "Ubuntu 22.04.5 LTS", "22.04", "jammy",
			"5.15.0-140-generic", "#150-Ubuntu SMP Sat Apr 12 06:00:09 UTC 2025"}
	case strings.Contains(banner, "deb11") || strings.Contains(banner, "8.4p1"):
		return Release{"debian", "Debian GNU/Linux", "Debian GNU/Linux 11 (bullseye)", "11", "bullseye",
			"5.10.0-35-amd64", "#1 SMP Debian 5.10.237-1 (2025-05-19)"}
	default:
		return Release{"debian", "Debian GNU/Linux", "Debian GNU/Linux 12 (bookworm)", "12", "bookworm",
			"6.1.0-37-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)"}
	}
}

// newFiles is the tree of a small server as it was installed.
func newFiles(cfg Config, programs map[string]command) *files {
	b := &builder{tree: make(map[string]*file), installed: cfg.Boot.Add(-97 * 24 * time.Hour).UTC().Truncate(time.Minute)}
	r := cfg.Release
	for _, dir := range strings.Fields("/ /boot /dev /etc /etc/apt /etc/cron.d /etc/cron.daily /etc/default /etc/init.d /etc/network " +
		"/etc/ssh /etc/systemd /home /lib /lib64 /lost+found /media /mnt /opt /proc /proc/self /proc/net /run /sbin /srv /sys " +
		"/usr /usr/bin /usr/games /usr/include /usr/lib /usr/local /usr/local/bin /usr/local/sbin /usr/sbin /usr/share /usr/src " +
		"/var /var/backups /var/cache /var/lib /var/log /var/log/apt /var/mail /var/opt /var/spool /var/spool/cron /bin") {
		b.dir(dir, 0o755, "root")
	}
	b.dir("/root", 0o700, "root")
	b.dir("/root/.ssh", 0o700, "root")
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", "/run/lock"} {
		b.dir(dir, 0o1777, "root")
	}
	homes := map[string]string{"root": "/root"}
	users := ""
	if cfg.User != "root" {
		homes[cfg.User] = homeOf(cfg.User)
		b.dir(homeOf(cfg.User), 0o755, cfg.User)
		users = fmt.Sprintf("%s:x:1000:1000:,,,:%s:/bin/bash\n", cfg.User, homeOf(cfg.User))
	}
	for user, home := range homes {
		b.file(home+"/.bashrc", "# ~/.bashrc: executed by bash(1) for non-login shells.\n\nexport PS1='\\u@\\h:\\w\\$ '\numask 022\n\n# alias rm='rm -i'\n# alias cp='cp -i'\n# alias mv='mv -i'\n", user)
		b.file(home+"/.profile", "# ~/.profile: executed by Bourne-compatible login shells.\n\nif [ \"$BASH\" ]; then\n  if [ -f ~/.bashrc ]; then\n    . ~/.bashrc\n  fi\nfi\n\nmesg n 2> /dev/null || true\n", user)
		b.file(home+"/.bash_history", "apt update\napt upgrade\ndf -h\nsystemctl status ssh\njournalctl -u ssh -n 50\nexit\n", user).private = true
	}
	b.file("/etc/hostname", cfg.Hostname+"\n", "root")
	b.file("/etc/hosts", fmt.Sprintf("127.0.0.1\tlocalhost\n127.0.1.1\t%s\n\n# The following lines are desirable for IPv6 capable hosts\n::1     localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n", cfg.Hostname), "root")
	b.file("/etc/resolv.conf", "nameserver 10.0.0.2\n", "root")
	b.file("/etc/issue", r.Pretty+" \\n \\l\n\n", "root")
	b.file("/etc/debian_version", r.Version+".11\n", "root")
	b.file("/etc/os-release", fmt.Sprintf("PRETTY_NAME=%q\nNAME=%q\nVERSION_ID=%q\nVERSION=\"%s (%s)\"\nVERSION_CODENAME=%s\nID=%s\nHOME_URL=\"https://www.%s.org/\"\n",
		r.Pretty, r.Name, r.Version, r.Version, r.Codename, r.Codename, r.ID, r.ID), "root")
	b.file("/etc/passwd", accounts+users+"sshd:x:104:65534::/run/sshd:/usr/sbin/nologin\n", "root")
	b.file("/etc/shadow", "root:$y$j9T$xRkDp8v0ZJ7bOq1uC2Tq./$hE9P5r0u3mYc2Wl1Xo6kVn8sDtQ4aZbG7iFjLpNwRy1:20211:0:99999:7:::\ndaemon:*:20114:0:99999:7:::\nbin:*:20114:0:99999:7:::\nnobody:*:20114:0:99999:7:::\nsshd:!:20114::::::\n", "root").private = true
	b.file("/etc/group", "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\nsudo:x:27:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n", "root")
	b.file("/etc/crontab", "SHELL=/bin/sh\nPATH=/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin\n\n17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly\n25 6\t* * *\troot\ttest -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.daily; }\n", "root")
	b.file("/etc/fstab", "# <file system> <mount point>   <type>  <options>       <dump>  <pass>\nUUID=5f1c9f7e-0d0b-4b6c-9a53-1a1f5a0f2c11 /               ext4    errors=remount-ro 0       1\n", "root")
	b.file("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n\nPermitRootLogin yes\nKbdInteractiveAuthentication no\nUsePAM yes\nX11Forwarding yes\nPrintMotd no\nAcceptEnv LANG LC_*\nSubsystem\tsftp\t/usr/lib/openssh/sftp-server\n", "root")
	b.file("/etc/apt/sources.list", fmt.Sprintf("deb http://mirror.internal/debian %s main\ndeb http://mirror.internal/debian-security %s-security main\n", r.Codename, r.Codename), "root")
	b.file("/var/log/auth.log", "", "root").private = true
	b.file("/var/log/syslog", "", "root").private = true
	b.file("/proc/version", fmt.Sprintf("Linux version %s (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40) %s\n", r.Kernel, r.Build), "root")
	b.file("/proc/cpuinfo", cpuinfo(0)+cpuinfo(1), "root")
	b.file("/proc/meminfo", "MemTotal:        4017812 kB\nMemFree:          412604 kB\nMemAvailable:    3092440 kB\nBuffers:          188020 kB\nCached:          2498716 kB\nSwapCached:            0 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n", "root")
	b.file("/proc/loadavg", "0.00 0.01 0.00 1/142 18453\n", "root")
	b.file("/proc/mounts", "/dev/vda1 / ext4 rw,relatime,errors=remount-ro 0 0\nproc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\nsysfs /sys sysfs rw,nosuid,nodev,noexec,relatime 0 0\ntmpfs /run tmpfs rw,nosuid,nodev,noexec,relatime,size=401784k,mode=755 0 0\n", "root")
	b.file("/proc/cmdline", fmt.Sprintf("BOOT_IMAGE=/boot/vmlinuz-%s root=/dev/vda1 ro quiet\n", r.Kernel), "root")
	b.file("/proc/uptime", fmt.Sprintf("%d.37 %d.11\n", int(cfg.Now().Sub(cfg.Boot).Seconds()), int(2*cfg.Now().Sub(cfg.Boot).Seconds())-9071), "root")
	b.file("/etc/motd.rendered", motd(cfg), "root")
	for _, device := range strings.Fields("null zero random urandom tty full") {
		b.file("/dev/"+device, "", "root").mode = 0o666
	}
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		for _, dir := range []string{"/usr/bin/", "/bin/"} {
			p := b.file(dir+name, "", "root")
			p.mode, p.program, p.size = 0o755, name, 31000+977*len(name)*len(name)
		}
	}
	for _, entry := range b.tree {
		entry.modified = b.installed
	}
	return &files{base: b.tree, over: make(map[string]*file)}
}

// builder makes the base tree.
type builder struct {
	tree      map[string]*file
	installed time.Time
}

func (b *builder) dir(where string, mode uint32, owner string) {
	b.tree[path.Clean(where)] = &file{dir: true, mode: mode, owner: owner, size: 4096}
}

func (b *builder) file(where, content, owner string) *file {
	f := &file{mode: 0o644, owner: owner, content: content, size: len(content)}
	if strings.HasPrefix(where, "/proc/") {
		f.size = 0
	}
	b.tree[where] = f
	return f
}

const accounts = `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
sync:x:4:65534:sync:/bin:/bin/sync
man:x:6:12:man:/var/cache/man:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
backup:x:34:34:backup:/var/backups:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
systemd-network:x:998:998:systemd Network Management:/:/usr/sbin/nologin
messagebus:x:100:107::/nonexistent:/usr/sbin/nologin
`

func cpuinfo(n int) string {
	return fmt.Sprintf("processor\t: %d\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) Gold 6248R CPU @ 3.00GHz\nstepping\t: 7\ncpu MHz\t\t: 2992.968\ncache size\t: 36608 KB\nphysical id\t: %d\nsiblings\t: 1\ncpu cores\t: 1\nflags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ss syscall nx pdpe1gb rdtscp lm avx avx2 avx512f\nbogomips\t: 5985.93\n\n", n, n)
}

func motd(cfg Config) string {
	r := cfg.Release
	if r.ID == "ubuntu" {
		return fmt.Sprintf("Welcome to %s (GNU/Linux %s x86_64)\n\n * Documentation:  https://help.ubuntu.com\n * Management:     https://landscape.canonical.com\n * Support:        https://ubuntu.com/pro\n\n", r.Pretty, r.Kernel)
	}
	return fmt.Sprintf("Linux %s %s %s x86_64\n\nThe programs included with the Debian GNU/Linux system are free software;\nthe exact distribution terms for each program are described in the\nindividual files in /usr/share/doc/*/copyright.\n\nDebian GNU/Linux comes with ABSOLUTELY NO WARRANTY, to the extent\npermitted by applicable law.\n", cfg.Hostname, r.Kernel, r.Build)
}

// process is a line of ps.
type process struct {
	pid     int
	user    string
	tty     string
	size    int // kB
	command string
}

// processes is what runs, sorted by number.
func (s *Shell) processes() []process {
	list := []process{
		{1, "root", "?", 12608, "/sbin/init"}, {2, "root", "?", 0, "[kthreadd]"}, {3, "root", "?", 0, "[rcu_gp]"},
		{11, "root", "?", 0, "[kworker/u4:0-events_unbound]"}, {14, "root", "?", 0, "[ksoftirqd/0]"}, {15, "root", "?", 0, "[rcu_preempt]"},
		{31, "root", "?", 0, "[kswapd0]"}, {212, "root", "?", 0, "[jbd2/vda1-8]"},
		{249, "root", "?", 21384, "/lib/systemd/systemd-journald"}, {273, "root", "?", 6520, "/lib/systemd/systemd-udevd"},
		{402, "root", "?", 2696, "/usr/sbin/cron -f"}, {403, "message+", "?", 4812, "/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only"},
		{411, "root", "?", 8088, "/lib/systemd/systemd-logind"}, {455, "root", "?", 5676, "dhclient -4 -v -i -pf /run/dhclient.eth0.pid eth0"},
		{489, "root", "tty1", 1920, "/sbin/agetty -o -p -- \\u --noclear - linux"}, {501, "root", "?", 9236, "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"},
		{18440, "root", "?", 11104, "sshd: " + s.cfg.User + "@pts/0"}, {18452, s.cfg.User, "pts/0", 5240, "-bash"},
	}
	slices.SortFunc(list, func(a, b process) int { return cmp.Compare(a.pid, b.pid) })
	return list
}
