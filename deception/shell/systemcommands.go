package shell

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

func id(c *call) int {
	letters, _ := c.options()
	number := uidOf(c.user)
	switch {
	case strings.Contains(letters, "u") && strings.Contains(letters, "n"):
		fmt.Fprintln(c.std.Out, c.user)
	case strings.ContainsAny(letters, "ug"):
		fmt.Fprintln(c.std.Out, number)
	default:
		fmt.Fprintf(c.std.Out, "uid=%s(%s) gid=%s(%s) groups=%s(%s)\n", number, c.user, number, c.user, number, c.user)
	}
	return 0
}

func whoami(c *call) int { fmt.Fprintln(c.std.Out, c.user); return 0 }
func groups(c *call) int { fmt.Fprintln(c.std.Out, c.user); return 0 }
func hostname(c *call) int {
	if letters, _ := c.options(); strings.ContainsAny(letters, "iI") {
		fmt.Fprintln(c.std.Out, c.cfg.Address)
		return 0
	}
	fmt.Fprintln(c.std.Out, c.cfg.Hostname)
	return 0
}

func uname(c *call) int {
	letters, _ := c.options()
	if letters == "" {
		letters = "s"
	}
	if strings.Contains(letters, "a") {
		letters = "snrvmo"
	}
	var out []string
	for _, part := range []struct{ letter, text string }{
		{"s", "Linux"}, {"n", c.cfg.Hostname}, {"r", c.cfg.Release.Kernel}, {"v", c.cfg.Release.Build}, {"m", "x86_64"}, {"p", "unknown"}, {"i", "unknown"}, {"o", "GNU/Linux"},
	} {
		if strings.Contains(letters, part.letter) {
			out = append(out, part.text)
		}
	}
	fmt.Fprintln(c.std.Out, strings.Join(out, " "))
	return 0
}

func lsbRelease(c *call) int {
	r := c.cfg.Release
	fmt.Fprintf(c.std.Out, "No LSB modules are available.\nDistributor ID:\t%s\nDescription:\t%s\nRelease:\t%s\nCodename:\t%s\n", strings.Fields(r.Name)[0], r.Pretty, r.Version, r.Codename)
	return 0
}

// up is how long the machine runs, as uptime and w say it.
func (c *call) up() string {
	d := c.cfg.Now().Sub(c.cfg.Boot)
	days, rest := int(d.Hours())/24, d%(24*time.Hour)
	return fmt.Sprintf(" %s up %d days, %2d:%02d,  1 user,  load average: 0.00, 0.01, 0.00",
		c.cfg.Now().UTC().Format("15:04:05"), days, int(rest.Hours()), int(rest.Minutes())%60)
}

func uptime(c *call) int { fmt.Fprintln(c.std.Out, c.up()); return 0 }

func w(c *call) int {
	fmt.Fprintf(c.std.Out, "%s\nUSER     TTY      FROM             LOGIN@   IDLE   JCPU   PCPU WHAT\n%-8s pts/0    %-16s %s    0.00s  0.01s  0.00s w\n",
		c.up(), c.user, c.cfg.Client, c.cfg.Now().UTC().Format("15:04"))
	return 0
}

func who(c *call) int {
	fmt.Fprintf(c.std.Out, "%-8s pts/0        %s (%s)\n", c.user, c.cfg.Now().UTC().Format("2006-01-02 15:04"), c.cfg.Client)
	return 0
}

func last(c *call) int {
	now := c.cfg.Now().UTC()
	fmt.Fprintf(c.std.Out, "%-8s pts/0        %-16s %s   still logged in\n%-8s pts/0        %-16s %s - %s  (00:21)\nreboot   system boot  %-16s %s   still running\n\nwtmp begins %s\n",
		c.user, c.cfg.Client, now.Format("Mon Jan _2 15:04"), c.user, lastClient(c.cfg.Client), now.Add(-41*time.Hour).Format("Mon Jan _2 15:04"), now.Add(-41*time.Hour+21*time.Minute).Format("15:04"),
		c.cfg.Release.Kernel, c.cfg.Boot.UTC().Format("Mon Jan _2 15:04"), c.cfg.Boot.UTC().Format("Mon Jan _2 15:04:05 2006"))
	return 0
}

func date(c *call) int {
	now := c.cfg.Now().UTC()
	for _, word := range c.words[1:] {
		if format, ok := strings.CutPrefix(word, "+"); ok {
			fmt.Fprintln(c.std.Out, strings.NewReplacer("%s", strconv.FormatInt(now.Unix(), 10), "%Y", now.Format("2006"), "%m", now.Format("01"), "%d", now.Format("02"),
				"%H", now.Format("15"), "%M", now.Format("04"), "%S", now.Format("05"), "%F", now.Format("2006-01-02"), "%T", now.Format("15:04:05"), "%y", now.Format("06"), "%%", "%").Replace(format))
			return 0
		}
	}
	fmt.Fprintln(c.std.Out, now.Format("Mon Jan _2 03:04:05 PM UTC 2006"))
	return 0
}

func ps(c *call) int {
	letters := strings.TrimLeft(strings.Join(c.words[1:], ""), "-")
	everything := strings.ContainsAny(letters, "aexA")
	now := c.cfg.Now().UTC()
	list := append(c.processes(), process{18460, c.user, "pts/0", 3340, strings.Join(c.words, " ")})
	switch {
	case strings.Contains(letters, "u"):
		fmt.Fprintln(c.std.Out, "USER         PID %CPU %MEM    VSZ   RSS TTY      STAT START   TIME COMMAND")
	case strings.Contains(letters, "f"):
		fmt.Fprintln(c.std.Out, "UID          PID    PPID  C STIME TTY          TIME CMD")
	default:
		fmt.Fprintln(c.std.Out, "    PID TTY          TIME CMD")
	}
	for _, p := range list {
		if !everything && p.tty != "pts/0" {
			continue
		}
		start := c.cfg.Boot.UTC().Format("Jan02")
		if p.pid > 10000 {
			start = now.Format("15:04")
		}
		switch {
		case strings.Contains(letters, "u"):
			fmt.Fprintf(c.std.Out, "%-8s %7d  0.0  %.1f %6d %5d %-8s %-4s %s   0:00 %s\n", p.user, p.pid, float64(p.size)/40178, p.size*3, p.size, p.tty, "S", start, p.command)
		case strings.Contains(letters, "f"):
			fmt.Fprintf(c.std.Out, "%-8s %7d %7d  0 %s %-8s 00:00:00 %s\n", p.user, p.pid, min(p.pid-1, 2), start, p.tty, p.command)
		default:
			name := strings.Trim(strings.Fields(p.command)[0], "-[]")
			fmt.Fprintf(c.std.Out, "%7d %-8s 00:00:00 %s\n", p.pid, p.tty, name[strings.LastIndexByte(name, '/')+1:])
		}
	}
	return 0
}

func top(c *call) int {
	fmt.Fprintf(c.std.Out, "top -%s\nTasks: %d total,   1 running, %d sleeping,   0 stopped,   0 zombie\n%%Cpu(s):  0.0 us,  0.3 sy,  0.0 ni, 99.7 id,  0.0 wa,  0.0 hi,  0.0 si,  0.0 st\nMiB Mem :   3923.6 total,    402.9 free,    903.6 used,   2617.1 buff/cache\nMiB Swap:      0.0 total,      0.0 free,      0.0 used.   3020.0 avail Mem\n", c.up(), len(c.processes()), len(c.processes())-1)
	return 0
}

func free(c *call) int {
	if letters, _ := c.options(); strings.Contains(letters, "m") {
		fmt.Fprint(c.std.Out, "               total        used        free      shared  buff/cache   available\nMem:            3923         903         402           0        2617        3020\nSwap:              0           0           0\n")
		return 0
	}
	fmt.Fprint(c.std.Out, "               total        used        free      shared  buff/cache   available\nMem:         4017812      925372      412604         512     2679836     3092440\nSwap:              0           0           0\n")
	return 0
}

func lscpu(c *call) int {
	fmt.Fprint(c.std.Out, "Architecture:            x86_64\n  CPU op-mode(s):        32-bit, 64-bit\n  Byte Order:            Little Endian\nCPU(s):                  2\n  On-line CPU(s) list:   0,1\nVendor ID:               GenuineIntel\n  Model name:            Intel(R) Xeon(R) Gold 6248R CPU @ 3.00GHz\n    CPU family:          6\n    Model:               85\n    Thread(s) per core:  1\n    Core(s) per socket:  1\n    Socket(s):           2\n    BogoMIPS:            5985.93\nVirtualization features:\n  Hypervisor vendor:     KVM\n  Virtualization type:   full\n")
	return 0
}

func env(c *call) int {
	sub := c.subshell()
	words := c.words[1:]
	for len(words) > 0 && (strings.Contains(words[0], "=") || strings.HasPrefix(words[0], "-")) {
		if name, value, ok := strings.Cut(words[0], "="); ok {
			sub.set(name, value)
		}
		words = words[1:]
	}
	if c.words[0] == "printenv" && len(words) > 0 {
		v, ok := c.variables[words[0]]
		if ok {
			fmt.Fprintln(c.std.Out, v.value)
		}
		return truth(ok)
	}
	if len(words) > 0 {
		return (&call{sub, c.words, c.std}).runNested(words)
	}
	sub.printVariables(c.std.Out, "", true)
	return 0
}

func ifconfig(c *call) int {
	fmt.Fprintf(c.std.Out, "eth0: flags=4163<UP,BROADCAST,RUNNING,MULTICAST>  mtu 1500\n        inet %s  netmask 255.255.255.0\n        ether %s  txqueuelen 1000  (Ethernet)\n\nlo: flags=73<UP,LOOPBACK,RUNNING>  mtu 65536\n        inet 127.0.0.1  netmask 255.0.0.0\n        loop  txqueuelen 1000  (Local Loopback)\n\n", c.cfg.Address, c.hardware())
	return 0
}

func ipCommand(c *call) int {
	_, rest := c.options()
	if len(rest) > 0 && strings.HasPrefix(rest[0], "r") {
		fmt.Fprintf(c.std.Out, "default via %s dev eth0\n", c.gateway())
		return 0
	}
	fmt.Fprintf(c.std.Out, "1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default qlen 1000\n    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00\n    inet 127.0.0.1/8 scope host lo\n       valid_lft forever preferred_lft forever\n2: eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc fq_codel state UP group default qlen 1000\n    link/ether %s brd ff:ff:ff:ff:ff:ff\n    inet %s/24 scope global dynamic eth0\n       valid_lft 68411sec preferred_lft 68411sec\n", c.hardware(), c.cfg.Address)
	return 0
}

func route(c *call) int {
	fmt.Fprintf(c.std.Out, "Kernel IP routing table\nDestination     Gateway         Genmask         Flags Metric Ref    Use Iface\ndefault         %-15s 0.0.0.0         UG    0      0        0 eth0\n", c.gateway())
	return 0
}

// hardware is an address of a virtual machine's network card.
func (c *call) hardware() string {
	b := c.cfg.Address.As16()
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[13]^0x5a, b[14], b[15])
}

func (c *call) gateway() string {
	if !c.cfg.Address.Is4() {
		return "fe80::1"
	}
	b := c.cfg.Address.As4()
	return fmt.Sprintf("%d.%d.%d.1", b[0], b[1], b[2])
}

func netstat(c *call) int {
	if c.words[0] == "ss" {
		fmt.Fprintf(c.std.Out, "State  Recv-Q Send-Q Local Address:Port  Peer Address:Port Process\nLISTEN 0      128          0.0.0.0:22         0.0.0.0:*\nESTAB  0      0      %s:22   %s:51442\nLISTEN 0      128             [::]:22            [::]:*\n", c.cfg.Address, c.cfg.Client)
		return 0
	}
	fmt.Fprintf(c.std.Out, "Active Internet connections (servers and established)\nProto Recv-Q Send-Q Local Address           Foreign Address         State\ntcp        0      0 0.0.0.0:22              0.0.0.0:*               LISTEN\ntcp        0     36 %-23s %-23s ESTABLISHED\ntcp6       0      0 :::22                   :::*                    LISTEN\n",
		fmt.Sprintf("%s:22", c.cfg.Address), fmt.Sprintf("%s:51442", c.cfg.Client))
	return 0
}

// test is test and [.
func test(c *call) int {
	words := c.words[1:]
	if c.words[0] == "[" {
		if len(words) == 0 || words[len(words)-1] != "]" {
			fmt.Fprintln(c.std.Err, "-bash: [: missing `]'")
			return 2
		}
		words = words[:len(words)-1]
	}
	return truth(c.testWords(words))
}

func (s *Shell) testWords(words []string) bool {
	for i, w := range words {
		if w == "-o" && i > 0 {
			return s.testWords(words[:i]) || s.testWords(words[i+1:])
		}
	}
	for i, w := range words {
		if w == "-a" && i > 0 {
			return s.testWords(words[:i]) && s.testWords(words[i+1:])
		}
	}
	switch {
	case len(words) > 1 && words[0] == "!":
		return !s.testWords(words[1:])
	case len(words) == 1:
		return words[0] != ""
	case len(words) == 2:
		return s.testOne(words[0], words[1])
	case len(words) == 3:
		return testTwo(words[0], words[1], words[2])
	}
	return false
}

func (s *Shell) testOne(operator, word string) bool {
	f := s.files.get(s.absolute(word))
	switch operator {
	case "-z":
		return word == ""
	case "-n":
		return word != ""
	case "-e", "-a":
		return f != nil
	case "-f":
		return f != nil && !f.dir
	case "-d":
		return f != nil && f.dir
	case "-s":
		return f != nil && f.size > 0
	case "-x":
		return f != nil && (f.dir || f.mode&0o111 != 0)
	case "-r":
		return f != nil && (!f.private || s.user == "root")
	case "-w":
		return f != nil && (s.user == "root" || f.owner == s.user || f.mode&0o002 != 0)
	case "-t":
		return true
	case "-v":
		_, ok := s.variables[word]
		return ok
	}
	return false
}

func testTwo(a, operator, b string) bool {
	x, _ := strconv.Atoi(strings.TrimSpace(a))
	y, _ := strconv.Atoi(strings.TrimSpace(b))
	switch operator {
	case "=", "==":
		return a == b
	case "!=":
		return a != b
	case "<":
		return a < b
	case ">":
		return a > b
	case "-eq":
		return x == y
	case "-ne":
		return x != y
	case "-lt":
		return x < y
	case "-le":
		return x <= y
	case "-gt":
		return x > y
	case "-ge":
		return x >= y
	}
	return false
}
