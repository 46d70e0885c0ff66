package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"bocage.dev/bocage/host"
)

// startDeadline is how long the servers may take, all together.
const startDeadline = 60 * time.Second

// dbPassword is the shop's password for its database. Everything that could
// use it is in the lab.
const dbPassword = "laboratory"

// server is a process that this process started in a workload.
type server struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended and was waited for
}

// Start makes the workloads and starts their servers, and the client's load when
// a request has gone all the way from the client through every server and back.
// If it cannot, what was started stays for a look: take it down with [Lab.Down].
func (l *Lab) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startDeadline, fmt.Errorf("the servers were not ready within %s", startDeadline))
	defer cancel()
	begun := time.Now()
	if err := l.start(ctx); err != nil {
		return fmt.Errorf("start lab %s: %w", l.config.Prefix, err)
	}
	l.config.Logger.InfoContext(ctx, "lab is up", "lab", l.config.Prefix, "duration", time.Since(begun))
	return nil
}

func (l *Lab) start(ctx context.Context) error {
	for _, p := range l.places {
		if err := l.buildWorkload(p); err != nil {
			return fmt.Errorf("workload %s: %w", p.name, err)
		}
	}
	for _, step := range []func(context.Context) error{l.startCache, l.startWeb, l.startDB, l.startAPI, l.ready, l.startClient} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ready waits until the shop answers, or says which server gave up.
func (l *Lab) ready(ctx context.Context) error {
	gaveUp := make(chan error, len(l.servers))
	ended := make(chan struct{})
	defer close(ended)
	for _, s := range l.servers {
		go func() { // ends with this function, or before
			select {
			case <-s.done:
				gaveUp <- fmt.Errorf("%s ended: %w; its last words: %s", s.name, errProcess(s.cmd), s.lastWords())
			case <-ended:
			}
		}()
	}
	return await(ctx, gaveUp, func() error {
		_, err := l.Check(ctx)
		return err
	})
}

func errProcess(cmd *exec.Cmd) error {
	if cmd.ProcessState == nil {
		return errors.New("no status")
	}
	return errors.New(cmd.ProcessState.String())
}

// lastWords returns the end of a server's log.
func (s *server) lastWords() string {
	const most = 800
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(text[max(0, len(text)-most):]))
}

// launch starts a command in a workload as a session of its own, so that it
// outlives this process, writing to a log in the lab's folder.
func (l *Lab) launch(workload string, as *syscall.Credential, argv ...string) (*server, error) {
	s := &server{name: workload, log: filepath.Join(Dir(l.config.Prefix), workload+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = out, out
	s.cmd.Dir = "/"
	s.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: as}
	if err := host.Start(l.Namespace(workload), s.cmd); err != nil {
		return nil, err
	}
	go func() { // ends with the process; Down waits for it
		_ = s.cmd.Wait()
		close(s.done)
	}()
	l.servers = append(l.servers, s)
	return s, nil
}

// startDB makes a PostgreSQL cluster and starts it. Nothing in it is worth a
// disk's sync.
func (l *Lab) startDB(ctx context.Context) error {
	bin, err := postgresBin()
	if err != nil {
		return err
	}
	as, err := credential("postgres")
	if err != nil {
		return err
	}
	dir, err := l.ownedDir("db", as)
	if err != nil {
		return err
	}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(dbPassword), 0o444); err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	var said bytes.Buffer
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "shop", "--pwfile", password,
		"--auth=scram-sha-256", "--no-sync", "--no-instructions", "--wal-segsize=1", "-E", "UTF8", "--locale=C")
	initdb.Dir, initdb.Stdout, initdb.Stderr = "/", &said, &said
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	// In the workload, so that taking the lab down finds it.
	if err := host.Start(l.Namespace("db"), initdb); err != nil {
		return err
	}
	if err := initdb.Wait(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	// The lab's network, by password; scram is what new clusters have.
	allow := fmt.Sprintf("host all all %s scram-sha-256\nhost all all fd77::/64 scram-sha-256\n", subnet())
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(allow), 0o644); err != nil {
		return err
	}
	_, err = l.launch("db", as, filepath.Join(bin, "postgres"), "-D", data,
		"-c", "listen_addresses="+l.Address("db").String()+","+l.Address6("db").String(), "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
		"-c", "shared_buffers=16MB", "-c", "max_connections=20", "-c", "max_wal_size=32MB", "-c", "min_wal_size=2MB",
		"-c", "jit=off", "-c", "autovacuum=off")
	return err
}

// postgresBin finds the newest PostgreSQL where Debian keeps them, or in PATH.
func postgresBin() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		version := func(path string) int {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
			return n
		}
		newest := slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })
		return filepath.Dir(newest), nil
	}
	path, err := program("postgres")
	return filepath.Dir(path), err
}

// startCache starts Redis, which keeps nothing on disk.
func (l *Lab) startCache(context.Context) error {
	path, err := program("redis-server")
	if err != nil {
		return err
	}
	as, err := credential("redis")
	if err != nil {
		return err
	}
	dir, err := l.ownedDir("cache", as)
	if err != nil {
		return err
	}
	_, err = l.launch("cache", as, path, "--bind", l.Address("cache").String(), l.Address6("cache").String(), "--port", strconv.Itoa(CachePort),
		"--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", dir, "--daemonize", "no", "--maxmemory", "32mb")
	return err
}

// startAPI starts our own server, which gives up root by itself: its binary may
// lie where nobody else can read.
func (l *Lab) startAPI(context.Context) error {
	_, err := l.launch("api", nil, l.config.Program, "lab-api",
		"--listen", ":"+strconv.Itoa(APIPort),
		"--db", "postgres://shop:"+dbPassword+"@"+l.at("db", DBPort)+"/postgres",
		"--cache", l.at("cache", CachePort))
	return err
}

// startWeb starts nginx as a reverse proxy of the API, over connections that it
// keeps.
func (l *Lab) startWeb(context.Context) error {
	path, err := program("nginx")
	if err != nil {
		return err
	}
	as, err := credential("www-data")
	if err != nil {
		return err
	}
	dir, err := l.ownedDir("web", as)
	if err != nil {
		return err
	}
	configuration := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConfiguration, dir, l.at("api", APIPort), WebPort)
	if err := os.WriteFile(configuration, []byte(text), 0o644); err != nil {
		return err
	}
	_, err = l.launch("web", as, path, "-e", "stderr", "-p", dir, "-c", configuration)
	return err
}

// nginxConfiguration takes the folder, the API's address and the port.
const nginxConfiguration = `daemon off;
worker_processes 1;
pid %[1]s/pid;
error_log stderr warn;
events { worker_connections 512; }
http {
  access_log off;
  server_tokens off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  keepalive_requests 1000000;
  keepalive_timeout 1h;
  upstream api {
    server %[2]s max_fails=0;
    keepalive 8;
    keepalive_requests 1000000;
    keepalive_timeout 1h;
  }
  server {
    listen %[3]d;
    listen [::]:%[3]d;
    location = /ping {
      return 200 "pong\n";
    }
    location / {
      proxy_pass http://api;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_connect_timeout 2s;
      proxy_read_timeout 5s;
      proxy_next_upstream off;
    }
  }
}
`

// startClient starts the load on the shop.
func (l *Lab) startClient(context.Context) error {
	_, err := l.launch("client", nil, l.config.Program, "lab-load", "--target", l.url("web", WebPort),
		"--rate", strconv.Itoa(l.config.Rate), "--stats", l.statsSocket())
	return err
}

func (l *Lab) statsSocket() string { return filepath.Join(Dir(l.config.Prefix), "load.sock") }

// ownedDir makes a folder in the lab's that belongs to somebody.
func (l *Lab) ownedDir(name string, owner *syscall.Credential) (string, error) {
	dir := filepath.Join(Dir(l.config.Prefix), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	return dir, os.Chown(dir, int(owner.Uid), int(owner.Gid))
}

// credential looks up a user of the system that a package brought.
func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("%w: run scripts/setup demo", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{uint32(gid)}}, nil
}

// program finds an executable in PATH or where administrators' are.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not installed: run scripts/setup demo: %w", name, fs.ErrNotExist)
	}
	return path, nil
}

// at is where a workload's server listens.
func (l *Lab) at(workload string, port int) string {
	return net.JoinHostPort(l.Address(workload).String(), strconv.Itoa(port))
}

func (l *Lab) url(workload string, port int) string { return "http://" + l.at(workload, port) }
