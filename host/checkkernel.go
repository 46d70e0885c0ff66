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

	"golang.org/x/sys/unix"
)

// suricataFloor is the oldest major release of the inspection engine that
// reloads rulesets by tenant while it runs.
const suricataFloor = 7

func (m Machine) kernelChecks() []Check {
	here := func(ask func() Answer) func(context.Context) Answer {
		return func(context.Context) Answer { return ask() }
	}
	return []Check{
		{"kernel.version", Needed, fmt.Sprintf("boot a kernel of %d.%d or newer: on Debian 12, install linux-image-amd64 from bookworm-backports", floorMajor, floorMinor), here(m.askVersion)},
		{"kernel.btf", Needed, "use a kernel built with CONFIG_DEBUG_INFO_BTF=y: Debian's own are", here(m.askBTF)},
		{"kernel.privilege", Needed, "run as root, or with CAP_BPF and CAP_NET_ADMIN after `bocage prepare --bpffs /run/bocage/bpf` with the agent's options, as packaging/bocage-agent.service does: sudo bocage doctor", here(m.askPrivilege)},
		{"kernel.tcx", Needed, fmt.Sprintf("boot a kernel of %d.%d or newer with CONFIG_NET_XGRESS=y and CONFIG_BPF_SYSCALL=y", floorMajor, floorMinor), here(m.askTCX)},
		{"kernel.bpffs", Needed, "mount -t bpf bpf " + BPFFS, here(m.askBPFFS)},
		{"kernel.namespaces", Needed, "use a kernel with CONFIG_NET_NS=y", here(m.askNamespaces)},
		{"kernel.bpffs-permissions", Degraded, "chmod 0700 " + BPFFS + ": whoever may write there can take enforcement off", here(m.askBPFFSMode)},
		{"kernel.jit", Degraded, "sysctl net.core.bpf_jit_enable=1", here(m.askJIT)},
		{"kernel.unprivileged-bpf", Degraded, "sysctl kernel.unprivileged_bpf_disabled=1", here(m.askUnprivileged)},
		{"kernel.lockdown", Advice, "boot with lockdown=integrity: confidentiality also takes bpftool and tracing from you", here(m.askLockdown)},
		{"kernel.memlock", Advice, "ulimit -l unlimited", here(m.askMemlock)},
		{"clock.synchronised", Degraded, "run chrony or systemd-timesyncd: certificates and threat conditions expire by this clock", here(m.askClock)},
		{"inspection.program", Degraded, "run scripts/setup demo, or install suricata (on Debian 12 from bookworm-backports); without it flows with a duty to inspect follow their profile's failMode", m.askSuricata},
	}
}

func (m Machine) askVersion() Answer {
	release, err := m.read("proc/sys/kernel/osrelease")
	if err != nil {
		return Unclear(err)
	}
	major, minor, ok := parseRelease(release)
	if !ok || major < floorMajor || major == floorMajor && minor < floorMinor {
		return Ill("Linux %s, at least %d.%d is needed: TCX links came with it", release, floorMajor, floorMinor)
	}
	return Well("Linux %s, at least %d.%d is needed", release, floorMajor, floorMinor)
}

func (m Machine) askBTF() Answer {
	const file = "sys/kernel/btf/vmlinux"
	f, err := os.Open(m.path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return Ill("there is no /%s: the kernel does not describe its types", file)
	}
	if err != nil {
		return Unclear(err)
	}
	defer f.Close()
	var magic [2]byte
	if _, err := f.Read(magic[:]); err != nil || magic != [2]byte{0x9f, 0xeb} && magic != [2]byte{0xeb, 0x9f} {
		return Ill("/%s holds no BTF", file)
	}
	return Well("/%s", file)
}

// Capabilities that enforcement cannot do without.
var neededCapabilities = []struct {
	name string
	bit  uint
}{{"CAP_BPF", unix.CAP_BPF}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}}

func (m Machine) askPrivilege() Answer {
	status, err := m.read("proc/self/status")
	if err != nil {
		return Unclear(err)
	}
	effective, err := EffectiveCapabilities(status)
	if err != nil {
		return Unclear(err)
	}
	var missing []string
	for _, c := range neededCapabilities {
		if effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return Ill("user %d lacks %s", os.Geteuid(), strings.Join(missing, ", "))
	}
	return Well("user %d", os.Geteuid())
}

// EffectiveCapabilities reads them out of a process's /proc/PID/status.
func EffectiveCapabilities(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return 0, errors.New("the process's status does not tell its capabilities")
}

func (m Machine) askTCX() Answer {
	err := knowsTCX()
	if errors.Is(err, unix.EPERM) {
		return Ill("%v", err).CuredBy("run as root, and check that no security module forbids bpf(2)")
	}
	if err != nil {
		return Ill("%v", err)
	}
	return Well("programs attach to links by TCX")
}

func (m Machine) askBPFFS() Answer {
	if IsBPFFS(m.path(BPFFS)) {
		return Well("mounted on %s", BPFFS)
	}
	known, err := m.read("proc/filesystems")
	if err != nil {
		return Unclear(err)
	}
	if !strings.Contains(known+"\n", "\tbpf\n") {
		return Ill("the kernel has no bpffs").CuredBy("use a kernel with CONFIG_BPF_SYSCALL=y")
	}
	return Well("the kernel has it; not mounted on %s, so an agent that is root mounts its own", BPFFS)
}

func (m Machine) askBPFFSMode() Answer {
	if !IsBPFFS(m.path(BPFFS)) {
		return Apart("no bpffs is mounted on %s", BPFFS)
	}
	info, err := os.Stat(m.path(BPFFS))
	if err != nil {
		return Unclear(err)
	}
	if mode := info.Mode(); mode.Perm()&0o022 != 0 && mode&fs.ModeSticky == 0 {
		return Ill("%s has mode %#o", BPFFS, mode.Perm())
	}
	return Well("%s has mode %#o", BPFFS, info.Mode().Perm())
}

func (m Machine) askJIT() Answer {
	value, err := m.read("proc/sys/net/core/bpf_jit_enable")
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission):
		return Apart("the kernel always compiles, or shows it in the machine's own network namespace only")
	case err != nil:
		return Unclear(err)
	case value == "0":
		return Ill("programs are interpreted: each packet costs several times as much")
	case value == "2":
		return Ill("the compiler writes every program to the kernel log")
	}
	return Well("programs are compiled")
}

func (m Machine) askUnprivileged() Answer {
	value, err := m.read("proc/sys/kernel/unprivileged_bpf_disabled")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Well("the kernel has no switch: unprivileged users have no bpf(2)")
	case err != nil:
		return Unclear(err)
	case value == "0":
		return Ill("every user may load programs, and speculate about others' memory with them")
	}
	return Well("only the privileged load programs")
}

func (m Machine) askLockdown() Answer {
	value, err := m.read("sys/kernel/security/lockdown")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Well("the kernel has no lockdown")
	case err != nil:
		return Unclear(err)
	case strings.Contains(value, "[confidentiality]"):
		return Ill("confidentiality: enforcement works, since its programs read no kernel memory; programs that do are refused")
	}
	return Well("%s", value)
}

func (m Machine) askNamespaces() Answer {
	if _, err := os.Stat(m.path("proc/thread-self/ns/net")); err != nil {
		return Ill("%v", err)
	}
	return Well("network namespaces are there")
}

// askSuricata is asked with a deadline: the program is somebody else's.
func (m Machine) askSuricata(ctx context.Context) Answer {
	path, err := exec.LookPath("suricata")
	if err != nil {
		return Ill("suricata is not installed")
	}
	out, err := exec.CommandContext(ctx, path, "-V").Output()
	if err != nil {
		return Ill("%s -V: %v", path, err)
	}
	version := regexp.MustCompile(`(\d+)\.\d+\.\d+`).FindStringSubmatch(string(out))
	if version == nil {
		return Ill("%s -V says %q", path, strings.TrimSpace(string(out)))
	}
	if major, _ := strconv.Atoi(version[1]); major < suricataFloor {
		return Ill("%s is %s, at least %d is needed", path, version[0], suricataFloor)
	}
	return Well("%s is %s", path, version[0])
}

// askMemlock: since Linux 5.11 maps are charged to the memory cgroup, so the
// limit counts only below our floor. It is told because people look for it.
func (m Machine) askMemlock() Answer {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return Unclear(err)
	}
	size := "unlimited"
	if limit.Cur != unix.RLIM_INFINITY {
		size = strconv.FormatUint(limit.Cur>>10, 10) + " KiB"
	}
	release, err := m.read("proc/sys/kernel/osrelease")
	if err != nil {
		return Unclear(err)
	}
	if major, minor, ok := parseRelease(release); ok && (major < 5 || major == 5 && minor < 11) && limit.Cur != unix.RLIM_INFINITY {
		return Ill("%s, and Linux %s charges maps to it", size, release)
	}
	return Well("%s; this kernel charges maps to the memory cgroup instead", size)
}

// askClock: certificates and expiries want a clock that somebody disciplines.
func (m Machine) askClock() Answer {
	var state unix.Timex // no modes: it is only read
	if _, err := unix.Adjtimex(&state); err != nil {
		return Unclear(err)
	}
	if state.Status&unix.STA_UNSYNC != 0 {
		return Ill("nobody says that it is synchronised")
	}
	return Well("synchronised")
}
