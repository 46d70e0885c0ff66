// Package containertest gives tests real container runtimes: a dockerd or a podman
// of their own, in a network namespace, with an image that is built and imported
// on the spot. No registry is ever asked.
//
// Everything is gone when the test ends, also if the runtime was killed.
package containertest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// Image is what containers are started from.
const Image = "localhost/probe:1"

// startsWithin is how long a runtime may take on a busy machine.
const startsWithin = time.Minute

// Runtime is one running dockerd or podman service.
type Runtime struct {
	Product   string // docker or podman
	Socket    string
	Namespace string // whose links it makes

	t       testing.TB
	dir     string
	mark    string // in the environment of every container
	service *exec.Cmd
	done    chan error
	// containerd is dockerd's: apart, as distributions have it, so that it lives on.
	containerd *exec.Cmd
}

// Products are the runtimes that tests use.
func Products() []string { return []string{"docker", "podman"} }

// Start starts a runtime whose networks are in the named namespace.
func Start(t testing.TB, product, namespace string) *Runtime {
	t.Helper()
	hosttest.Root(t)
	program := map[string]string{"docker": "dockerd", "podman": "podman"}[product]
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%s is not installed: scripts/setup test installs it", program)
	}
	dir, err := os.MkdirTemp("", "bct")
	if err != nil {
		t.Fatal(err)
	}
	mark := make([]byte, 8)
	rand.Read(mark)
	r := &Runtime{Product: product, Namespace: namespace, t: t, dir: dir, Socket: filepath.Join(dir, "sock"), mark: hex.EncodeToString(mark)}
	t.Cleanup(r.remove)
	if err := r.configure(); err != nil {
		t.Fatal(err)
	}
	if product == "docker" {
		r.startContainerd()
	}
	r.Serve()
	r.Must("import", r.image(), Image)
	return r
}

func (r *Runtime) configure() error {
	text := fmt.Sprintf(`[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
pidns = "private"
[engine]
runtime = %q
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = %q
[network]
network_config_dir = %q
`, ociRuntime(), filepath.Join(r.dir, "tmp"), filepath.Join(r.dir, "net"))
	return os.WriteFile(filepath.Join(r.dir, "containers.conf"), []byte(text), 0o600)
}

// ociRuntime prefers runc: crun refuses hosts that have both kinds of cgroups.
func ociRuntime() string {
	if _, err := exec.LookPath("runc"); err == nil {
		return "runc"
	}
	return "crun"
}

func (r *Runtime) startContainerd() {
	r.t.Helper()
	config := filepath.Join(r.dir, "containerd.toml")
	if err := os.WriteFile(config, []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	socket := filepath.Join(r.dir, "containerd.sock")
	r.containerd = exec.Command("containerd", "--config", config, "--root", filepath.Join(r.dir, "containerd"), "--state", filepath.Join(r.dir, "state"),
		"--address", socket, "--log-level", "error")
	if err := host.Start(r.Namespace, r.containerd); err != nil {
		r.t.Fatal(err)
	}
	deadline := time.Now().Add(startsWithin)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("containerd does not start: %v", err)
		}
	}
}

// Serve starts the service: also again, after Kill.
func (r *Runtime) Serve() {
	r.t.Helper()
	args := append(r.podmanFlags(), "system", "service", "-t", "0", "unix://"+r.Socket)
	if r.Product == "docker" {
		args = []string{"dockerd", "--data-root", filepath.Join(r.dir, "data"), "--exec-root", filepath.Join(r.dir, "exec"),
			"--containerd", filepath.Join(r.dir, "containerd.sock"), "--pidfile", filepath.Join(r.dir, "pid"), "-H", "unix://" + r.Socket, "--storage-driver", "vfs", "--live-restore",
			"--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--bip", "172.30.0.1/24"}
	}
	log, err := os.OpenFile(filepath.Join(r.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	r.service = exec.Command(args[0], args[1:]...)
	r.service.Stdout, r.service.Stderr, r.service.Env = log, log, r.environment()
	if err := host.Start(r.Namespace, r.service); err != nil {
		r.t.Fatal(err)
	}
	r.done = make(chan error, 1)
	go func(service *exec.Cmd, done chan<- error) { done <- service.Wait() }(r.service, r.done)
	if err := r.await(); err != nil {
		words, _ := os.ReadFile(filepath.Join(r.dir, "log"))
		r.t.Fatalf("%s does not start: %v\n%s", r.Product, err, words[max(0, len(words)-4000):])
	}
}

// await waits until the socket answers.
func (r *Runtime) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), startsWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := r.ping(); err == nil {
			return nil
		} else if ctx.Err() != nil {
			return err
		}
		select {
		case err := <-r.done:
			r.done <- err
			return fmt.Errorf("it ended: %w", errors.Join(err, errors.New("see its log")))
		case <-tick.C:
		}
	}
}

func (r *Runtime) ping() error {
	conn, err := net.DialTimeout("unix", r.Socket, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("GET /_ping HTTP/1.0\r\nHost: x\r\n\r\n")); err != nil {
		return err
	}
	answer := make([]byte, 64)
	n, err := conn.Read(answer)
	if err == nil && !bytes.Contains(answer[:n], []byte("200 OK")) {
		return fmt.Errorf("it answers %q", answer[:n])
	}
	return err
}

// Kill ends the service as a crash would. Its containers live on.
func (r *Runtime) Kill() {
	r.t.Helper()
	if err := r.service.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	<-r.done
	r.done <- nil
}

func (r *Runtime) podmanFlags() []string {
	return []string{"podman", "--root", filepath.Join(r.dir, "root"), "--runroot", filepath.Join(r.dir, "run"), "--storage-driver", "vfs",
		"--network-config-dir", filepath.Join(r.dir, "net")}
}

func (r *Runtime) environment() []string {
	if r.Product == "docker" {
		return append(os.Environ(), "DOCKER_HOST=unix://"+r.Socket, "DOCKER_CONFIG="+filepath.Join(r.dir, "config"))
	}
	return append(os.Environ(), "CONTAINERS_CONF="+filepath.Join(r.dir, "containers.conf"), "XDG_RUNTIME_DIR="+filepath.Join(r.dir, "xdg"))
}

// Do runs the runtime's own command line and returns what it prints.
func (r *Runtime) Do(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startsWithin)
	defer cancel()
	line := append([]string{"docker"}, args...)
	if r.Product == "podman" {
		line = append(r.podmanFlags(), args...)
	}
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.WaitDelay = &out, &words, r.environment(), time.Second
	if err := host.Start(r.Namespace, cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, words.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// Must is Do that may not go wrong.
func (r *Runtime) Must(args ...string) string {
	r.t.Helper()
	out, err := r.Do(args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// Run starts a container and returns its ID. The words after "--" are the probe's;
// those before are the runtime's.
func (r *Runtime) Run(name string, args ...string) string {
	r.t.Helper()
	id, err := r.TryRun(name, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// TryRun is Run that may go wrong.
func (r *Runtime) TryRun(name string, args ...string) (string, error) {
	line := []string{"run", "-d", "--name", name, "-e", "BOCAGE_TEST=" + r.mark}
	words := []string{"wait"}
	for i, a := range args {
		if a == "--" {
			args, words = args[:i], args[i+1:]
			break
		}
	}
	line = append(line, args...)
	return r.Do(append(append(line, Image, "/probe"), words...)...)
}

// image builds the probe and wraps it.
func (r *Runtime) image() string {
	r.t.Helper()
	program := filepath.Join(r.dir, "probe")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "bocage.dev/bocage/host/container/containertest/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if words, err := build.CombinedOutput(); err != nil {
		r.t.Fatalf("build the probe: %v\n%s", err, words)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		r.t.Fatal(err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: "probe", Mode: 0o755, Size: int64(len(data)), ModTime: time.Unix(1, 0)}); err != nil {
		r.t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		r.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		r.t.Fatal(err)
	}
	file := filepath.Join(r.dir, "image.tar")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return file
}

// remove ends everything, whatever state it is in.
func (r *Runtime) remove() {
	if r.service == nil {
		if r.containerd != nil {
			r.containerd.Process.Kill()
			r.containerd.Wait()
		}
		os.RemoveAll(r.dir)
		return
	}
	if r.Product == "podman" {
		if _, err := r.Do("pod", "rm", "-fa"); err != nil {
			r.t.Log(err)
		}
	}
	if all, err := r.Do("ps", "-aq"); err == nil && all != "" {
		if _, err := r.Do(append([]string{"rm", "-f"}, strings.Fields(all)...)...); err != nil {
			r.t.Log(err)
		}
	}
	r.service.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		r.service.Process.Kill()
		<-r.done
	}
	if r.containerd != nil {
		r.containerd.Process.Kill()
		r.containerd.Wait()
	}
	r.killMarked()
	if r.Namespace != "" {
		if err := host.Kill(r.Namespace); err != nil { // shims and helpers
			r.t.Error(err)
		}
	}
	for _, mount := range r.mounts() {
		syscall.Unmount(mount, syscall.MNT_DETACH)
	}
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Error(err)
	}
}

// killMarked ends containers that a dead runtime left.
func (r *Runtime) killMarked() {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && bytes.Contains(environ, []byte("BOCAGE_TEST="+r.mark)) {
			if err := host.KillProcess(pid, 5*time.Second); err != nil {
				r.t.Log(err)
			}
		}
	}
}

// mounts lists what is mounted below the runtime's folder, the deepest first.
func (r *Runtime) mounts() []string {
	table, _ := os.ReadFile("/proc/self/mounts")
	var below []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], r.dir+"/") {
			below = append([]string{fields[1]}, below...)
		}
	}
	return below
}
