package dataplane

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
)

// Prepare mounts a bpffs on a folder, or takes the one that is there, and gives it to
// a user, with what an agent that was root left in it: an agent that is not root may
// pin there, and cannot mount by itself. What lies around the folder may be that
// user's, so no link is followed; and the user must be able to reach it.
func Prepare(dir string, uid, gid int) error {
	above, err := host.Folder(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("prepare %s: %w", dir, err)
	}
	defer above.Close()
	if err := mayReach(dir, uint32(uid), uint32(gid)); err != nil {
		return err
	}
	if _, err := mount(dir); err != nil {
		return err
	}
	folder, err := host.Folder(dir)
	if err != nil {
		return fmt.Errorf("prepare %s: %w", dir, err)
	}
	defer folder.Close()
	if !inBPFFS(folder) {
		return fmt.Errorf("prepare %s: what was mounted there is gone: is another process at it?", dir)
	}
	if err := unix.Fchownat(int(folder.Fd()), "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("give %s to user %d: %w", dir, uid, err)
	}
	// A file system of others, as a whole, is not ours to hand over; a folder in it is.
	if uid == 0 || !isOwnMount(dir) && !inBPFFS(above) {
		return nil
	}
	return host.HandOver(folder, uid, gid)
}

// mayReach says why a user cannot reach a folder.
func mayReach(dir string, uid, gid uint32) error {
	for above := filepath.Dir(dir); uid != 0; above = filepath.Dir(above) {
		var st unix.Stat_t
		if err := unix.Stat(above, &st); err != nil {
			return &fs.PathError{Op: "look at", Path: above, Err: err}
		}
		may := st.Mode & unix.S_IXOTH
		switch {
		case st.Uid == uid:
			may = st.Mode & unix.S_IXUSR
		case st.Gid == gid:
			may = st.Mode & unix.S_IXGRP
		}
		if may == 0 {
			return fmt.Errorf("user %d may not enter %s (mode %#o), and so cannot reach %s: give `bocage prepare` and the agent a folder that this user can reach, such as --bpffs /run/bocage/bpf", uid, above, st.Mode&0o7777, dir)
		}
		if above == "/" {
			break
		}
	}
	return nil
}

// mount mounts a bpffs where there is none. Two agents that start at once must
// not mount over each other, so the folder above is held meanwhile.
func mount(dir string) (bool, error) {
	folder, err := host.Folder(dir)
	if err != nil {
		return false, fmt.Errorf("mount bpffs: %w", err)
	}
	folder.Close()
	above, err := holdDir(filepath.Dir(dir), unix.LOCK_EX)
	if err != nil {
		return false, fmt.Errorf("mount bpffs: %w", err)
	}
	defer above.Close()
	if folder, err = host.Folder(dir); err != nil { // with what is mounted on it by now
		return false, fmt.Errorf("mount bpffs: %w", err)
	}
	defer folder.Close()
	if inBPFFS(folder) {
		return false, nil
	}
	// On the folder that was opened, whatever its name leads to by now.
	err = unix.Mount(mountSource, fmt.Sprintf("/proc/self/fd/%d", folder.Fd()), "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=0700")
	if err != nil {
		return false, fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return true, nil
}

// inBPFFS says whether an open folder is in a bpffs.
func inBPFFS(folder *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(folder.Fd()), &st) == nil && st.Type == unix.BPF_FS_MAGIC
}
