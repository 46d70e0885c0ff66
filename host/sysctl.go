package host

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sysctl sets a kernel variable, named as sysctl(8) does: with dots
// ("net.ipv4.ip_forward"), or with slashes where a link's name has dots. What
// is under "net" belongs to the namespace, other variables to the machine.
func Sysctl(namespace, key, value string) error {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	if !fs.ValidPath(key) {
		return fmt.Errorf("set sysctl %q: %w", key, fs.ErrInvalid)
	}
	// /proc/sys/net shows the namespace of the thread that opens a file in it.
	err := In(namespace, func() error {
		f, err := os.OpenFile(filepath.Join("/proc/sys", key), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(value)
		return err
	})
	if err != nil {
		return fmt.Errorf("set sysctl %s=%s in namespace %q: %w", key, value, namespace, err)
	}
	return nil
}
