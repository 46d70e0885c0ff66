package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Probe is one question about this machine, with its answer.
type Probe struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Needed says that nothing works without it. Other probes that are not OK
	// are warnings.
	Needed bool   `json:"needed"`
	Detail string `json:"detail"`
	// Cure says what to do if it is not OK.
	Cure string `json:"cure,omitempty"`
}

// Kernel floor: the first release with TCX links.
const (
	floorMajor = 6
	floorMinor = 6
)

// suricataFloor is the oldest major release of the inspection engine that
// reloads rulesets by tenant while it runs.
const suricataFloor = 7

// ProbeFeatures asks everything, needed things first. It changes nothing on
// the machine, and takes well under a second.
func ProbeFeatures() []Probe {
	return []Probe{
		probeKernel(),
		probeBTF(),
		probeCapabilities(),
		probeTCX(),
		probeBPFFS(),
		probeNamespaces(),
		probeSuricata(),
		probeMemlock(),
		probeClock(),
		probeFirewall(),
		probeBridgeFilter(),
		probeOtherDataplane(),
	}
}

// Kernel returns the release of the running kernel, such as "6.12.9".
func Kernel() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("read the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

func probeKernel() Probe {
	p := Probe{Name: "kernel", Needed: true,
		Cure: fmt.Sprintf("boot a kernel of %d.%d or newer: on Debian 12, install linux-image-amd64 from bookworm-backports", floorMajor, floorMinor)}
	release, err := Kernel()
	if err != nil {
		p.Detail = err.Error()
		return p
	}
	major, minor, ok := parseRelease(release)
	p.OK = ok && (major > floorMajor || major == floorMajor && minor >= floorMinor)
	p.Detail = fmt.Sprintf("Linux %s, at least %d.%d is needed", release, floorMajor, floorMinor)
	return p
}

// parseRelease reads the first two numbers of a kernel release.
func parseRelease(release string) (major, minor int, ok bool) {
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor, n == 2
}

func probeBTF() Probe {
	const file = "/sys/kernel/btf/vmlinux"
	p := Probe{Name: "btf", Needed: true, Detail: file,
		Cure: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y: Debian's own are"}
	f, err := os.Open(file)
	if err != nil {
		p.Detail = err.Error()
		return p
	}
	defer f.Close()
	var magic [2]byte
	_, err = f.Read(magic[:])
	p.OK = err == nil && (magic == [2]byte{0x9f, 0xeb} || magic == [2]byte{0xeb, 0x9f})
	return p
}

// Capabilities of linux/capability.h that the agent cannot do without, and
// those that it needs for namespaces of its own.
var neededCapabilities = []struct {
	name string
	bit  uint
}{{"CAP_BPF", unix.CAP_BPF}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}}

func probeCapabilities() Probe {
	p := Probe{Name: "privilege", Needed: true, Cure: "run as root: sudo bocage doctor"}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		p.Detail = err.Error()
		return p
	}
	effective := uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
	var missing []string
	for _, c := range neededCapabilities {
		if effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	p.OK = len(missing) == 0
	p.Detail = fmt.Sprintf("user %d", os.Geteuid())
	if !p.OK {
		p.Detail += " lacks " + strings.Join(missing, ", ")
	}
	return p
}

// probeTCX asks the kernel to attach a program to a link that does not exist:
// one that knows TCX misses the link, one that does not refuses the question.
func probeTCX() Probe {
	p := Probe{Name: "tcx", Needed: true, Detail: "programs attach to links by TCX",
		Cure: fmt.Sprintf("boot a kernel of %d.%d or newer with CONFIG_NET_XGRESS=y and CONFIG_BPF_SYSCALL=y", floorMajor, floorMinor)}
	program, err := loadPass()
	if err != nil {
		p.Detail = fmt.Sprintf("load a program: %v", err)
		if errors.Is(err, unix.EPERM) {
			p.Cure = "run as root, and check that no security module forbids bpf(2)"
		}
		return p
	}
	defer unix.Close(program)
	const (
		linkCreate = 28 // BPF_LINK_CREATE
		tcxIngress = 46 // BPF_TCX_INGRESS
		noLink     = 0x7fffffff
	)
	attributes := struct{ program, target, kind, flags, relative, _, revisionLow, revisionHigh uint32 }{
		program: uint32(program), target: noLink, kind: tcxIngress}
	_, err = bpf(linkCreate, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
	p.OK = errors.Is(err, unix.ENODEV)
	if !p.OK {
		p.Detail = fmt.Sprintf("the kernel does not know TCX links: %v", err)
	}
	return p
}

// loadPass loads the smallest program of the kind that TCX runs: let it pass.
func loadPass() (fd int, err error) {
	const (
		programLoad     = 5 // BPF_PROG_LOAD
		schedClassifier = 3 // BPF_PROG_TYPE_SCHED_CLS
	)
	code := [2]uint64{0x000000b7, 0x00000095} // r0 = 0; exit
	license := []byte("GPL\x00")
	attributes := struct {
		kind, count        uint32
		code, license      uint64
		logLevel, logSize  uint32
		log                uint64
		kernelVersion, pad uint32
	}{kind: schedClassifier, count: uint32(len(code)),
		code: uint64(uintptr(unsafe.Pointer(&code))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	return bpf(programLoad, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
}

func bpf(command int, attributes unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attributes), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// BPFFS is where distributions mount the file system that keeps programs and
// maps alive without a process.
const BPFFS = "/sys/fs/bpf"

// MountBPFFS makes sure that a bpffs is mounted on a directory, which it makes
// if needed. It says whether it had to mount it.
func MountBPFFS(dir string) (mounted bool, err error) {
	if IsBPFFS(dir) {
		return false, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("mount bpffs: %w", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return true, nil
}

// IsBPFFS says whether a path is in a bpffs.
func IsBPFFS(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.BPF_FS_MAGIC
}

func probeBPFFS() Probe {
	p := Probe{Name: "bpffs", Needed: true, Detail: "mounted on " + BPFFS,
		Cure: "mount -t bpf bpf " + BPFFS}
	if p.OK = IsBPFFS(BPFFS); p.OK {
		return p
	}
	known, err := os.ReadFile("/proc/filesystems")
	p.OK = err == nil && strings.Contains(string(known), "\tbpf\n")
	p.Detail = "the kernel has it; not mounted on " + BPFFS + ", so the agent mounts its own"
	if !p.OK {
		p.Detail, p.Cure = "the kernel has no bpffs", "use a kernel with CONFIG_BPF_SYSCALL=y"
	}
	return p
}

func probeNamespaces() Probe {
	p := Probe{Name: "namespaces", Needed: true, Detail: "network namespaces are there",
		Cure: "use a kernel with CONFIG_NET_NS=y"}
	_, err := os.Stat(threadNamespace)
	if p.OK = err == nil; !p.OK {
		p.Detail = err.Error()
	}
	return p
}

func probeSuricata() Probe {
	p := Probe{Name: "suricata", Cure: "run scripts/setup demo, or install suricata (on Debian 12 from bookworm-backports); without it flows with a duty to inspect follow their profile's failMode"}
	path, err := exec.LookPath("suricata")
	if err != nil {
		p.Detail = "not installed"
		return p
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-V").Output()
	if err != nil {
		p.Detail = fmt.Sprintf("%s -V: %v", path, err)
		return p
	}
	version := regexp.MustCompile(`(\d+)\.\d+\.\d+`).FindStringSubmatch(string(out))
	if version == nil {
		p.Detail = fmt.Sprintf("%s -V says %q", path, strings.TrimSpace(string(out)))
		return p
	}
	major, _ := strconv.Atoi(version[1])
	p.OK = major >= suricataFloor
	p.Detail = fmt.Sprintf("%s is %s, at least %d is needed", path, version[0], suricataFloor)
	return p
}

// probeMemlock: since Linux 5.11 maps are charged to the memory cgroup, so the
// limit counts only below our floor. It is told because people look for it.
func probeMemlock() Probe {
	p := Probe{Name: "memlock", OK: true, Cure: "ulimit -l unlimited"}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		p.Detail = err.Error()
		return p
	}
	size := "unlimited"
	if limit.Cur != unix.RLIM_INFINITY {
		size = strconv.FormatUint(limit.Cur>>10, 10) + " KiB"
	}
	p.Detail = size + "; this kernel charges maps to the memory cgroup instead"
	if release, err := Kernel(); err == nil {
		if major, minor, ok := parseRelease(release); ok && (major < 5 || major == 5 && minor < 11) {
			p.OK, p.Detail = limit.Cur == unix.RLIM_INFINITY, size
		}
	}
	return p
}

// probeClock: certificates and expiries want a clock that somebody disciplines.
func probeClock() Probe {
	p := Probe{Name: "clock", Cure: "run chrony or systemd-timesyncd: certificates and threat conditions expire by this clock"}
	var state unix.Timex // no modes: it is only read
	if _, err := unix.Adjtimex(&state); err != nil {
		p.Detail = err.Error()
		return p
	}
	p.OK = state.Status&unix.STA_UNSYNC == 0
	p.Detail = "synchronised"
	if !p.OK {
		p.Detail = "nobody says that it is synchronised"
	}
	return p
}

// probeFirewall names nftables tables that see the same packets: those of the
// netdev and bridge families sit on the very links that are enforced.
func probeFirewall() Probe {
	p := Probe{Name: "nftables", Cure: "see nft list ruleset: a packet must pass these tables and the enforcement points"}
	tables, err := FirewallTables("")
	if err != nil {
		p.OK, p.Detail = true, fmt.Sprintf("not readable: %v", err)
		return p
	}
	var near []string
	for _, t := range tables {
		if strings.HasPrefix(t, "netdev ") || strings.HasPrefix(t, "bridge ") {
			near = append(near, t)
		}
	}
	p.OK = len(near) == 0
	p.Detail = fmt.Sprintf("%d tables, none on links or bridges", len(tables))
	if !p.OK {
		p.Detail = "tables on links or bridges: " + strings.Join(near, ", ")
	}
	return p
}

// probeBridgeFilter: with br_netfilter, bridged packets pass iptables too.
func probeBridgeFilter() Probe {
	p := Probe{Name: "br_netfilter", OK: true, Detail: "bridged packets do not pass iptables",
		Cure: "sysctl net.bridge.bridge-nf-call-iptables=0, or allow the workloads in the FORWARD chain"}
	value, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	if errors.Is(err, fs.ErrNotExist) {
		return p
	}
	if strings.TrimSpace(string(value)) != "0" {
		p.OK, p.Detail = false, "bridged packets also pass iptables, whose FORWARD chain may drop them"
	}
	return p
}

// probeOtherDataplane names links with a clsact qdisc: somebody else's programs
// run there.
func probeOtherDataplane() Probe {
	p := Probe{Name: "other dataplanes", OK: true, Detail: "no classifiers of others on any link",
		Cure: "see tc filter show dev LINK ingress: TCX programs run before them, and what they redirect is not seen again"}
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	if err != nil {
		p.Detail = fmt.Sprintf("not readable: %v", err)
		return p
	}
	var links []string
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		name := strconv.Itoa(q.Attrs().LinkIndex)
		if link, err := netlink.LinkByIndex(q.Attrs().LinkIndex); err == nil {
			name = link.Attrs().Name
		}
		links = append(links, name)
	}
	if len(links) > 0 {
		p.OK, p.Detail = false, "classifiers on "+strings.Join(links, ", ")
	}
	return p
}
