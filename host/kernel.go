package host

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kernel floor: the first release with TCX links.
const (
	floorMajor = 6
	floorMinor = 6
)

// Kernel returns the release of the running kernel, such as "6.12.9".
func Kernel() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("read the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

// parseRelease reads the first two numbers of a kernel release.
func parseRelease(release string) (major, minor int, ok bool) {
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor, n == 2
}

// knowsTCX asks the kernel to attach a program to a link that does not exist:
// one that knows TCX misses the link, one that does not refuses the question.
func knowsTCX() error {
	program, err := loadPass()
	if err != nil {
		return fmt.Errorf("load a program: %w", err)
	}
	defer unix.Close(program)
	const (
		linkCreate = 28 // BPF_LINK_CREATE
		tcxIngress = 46 // BPF_TCX_INGRESS
		noLink     = 0x7fffffff
	)
	attributes := struct{ program, target, kind, flags, relative, _, revisionLow, revisionHigh uint32 }{
		program: uint32(program), target: noLink, kind: tcxIngress}
	if _, err = bpf(linkCreate, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes)); errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("attach a program by TCX: %w", err)
}

// loadPass loads the smallest program of the kind that TCX runs: let it pass.
func loadPass() (fd int, err error) {
	const schedClassifier = 3 // BPF_PROG_TYPE_SCHED_CLS
	return loadReturn(schedClassifier, 0)
}

// loadReturn loads a program of a kind that only returns a number.
func loadReturn(kind uint32, number int32) (fd int, err error) {
	const programLoad = 5                                      // BPF_PROG_LOAD
	code := [2]uint64{0xb7 | uint64(uint32(number))<<32, 0x95} // r0 = number; exit
	license := []byte("GPL\x00")
	attributes := struct {
		kind, count        uint32
		code, license      uint64
		logLevel, logSize  uint32
		log                uint64
		kernelVersion, pad uint32
	}{kind: kind, count: uint32(len(code)),
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
