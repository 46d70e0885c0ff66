package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/lab"
)

// Config says how to show it.
type Config struct {
	// Program is the bocage binary.
	Program string
	Out     io.Writer
	// Keep leaves everything running at the end.
	Keep bool
	// Prefix names the namespaces; several demos can run beside each other.
	Prefix string
}

// beforeFile is a file in the demo's folder: what the machine looked like before.
const beforeFile = "before.json"

// quarantineFor is short, so that a viewer sees the workload come back.
const quarantineFor = 8 * time.Second

// demo is one performance.
type demo struct {
	teller
	cfg      Config
	dir      string
	lab      *lab.Lab
	cli      command // speaks to the controller, which lives on h1
	nodes    map[string]*nodeProcess
	snapshot lab.Snapshot
	// doomed is a connection that the quarantine has to cut, exploited the moment
	// of the exploit that leads to it.
	doomed    *lab.Held
	exploited time.Time
}

// nodeProcess is a running `bocage up` or `bocage agent`.
type nodeProcess struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// ended tells of a process that should be running.
func (p *nodeProcess) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %s", p.cmd, p.cmd.ProcessState)
	default:
		return nil
	}
}

// Run performs all chapters and returns the first assertion that did not hold.
// Whatever happens, it removes what it made, unless it is to be kept.
func Run(ctx context.Context, cfg Config) (err error) {
	dir, err := os.MkdirTemp("", "bocage-demo-")
	if err != nil {
		return err
	}
	// The inspection engine and the decoys run as users of their own below it.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	d := &demo{teller: teller{cfg.Out, time.Now()}, cfg: cfg, dir: dir, nodes: map[string]*nodeProcess{}}
	d.cli = command{program: cfg.Program, runDir: d.place("h1", "run")}
	if d.snapshot, err = lab.TakeSnapshot(dir); err != nil {
		return err
	}
	// Whoever takes a kept demo down compares with what was before it.
	before, err := json.Marshal(d.snapshot)
	if err == nil {
		err = os.WriteFile(d.place(beforeFile), before, 0o600)
	}
	if err != nil {
		return err
	}
	chapters := []struct {
		title string
		play  func(context.Context) error
	}{
		{"Start everything in one process tree, in monitor mode", d.start},
		{"A small data center on two hosts", d.dataCenter},
		{"See flows, and what would be refused", d.observe},
		{"From what was seen to enforced policy", d.enforce},
		{"An attacker scans", d.scan},
		{"An exploit over a path that policy allows", d.exploit},
		{"The incident becomes policy, and ends by itself", d.contain},
		{"The agents are killed while traffic flows", d.kill},
	}
	for i, chapter := range chapters {
		d.chapter(i+1, chapter.title)
		if err = chapter.play(ctx); err != nil {
			err = fmt.Errorf("chapter %d, %s: %w", i+1, chapter.title, err)
			break
		}
	}
	if cfg.Keep && err == nil {
		d.whatNext()
		return nil
	}
	if err != nil {
		d.saveLogs()
	}
	d.chapter(len(chapters)+1, "Take everything down, leaving no trace")
	// The person may have ended the demo: what was made is removed all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, d.down(ctx))
}

func (d *demo) place(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

// node starts a bocage process on a host of the lab, that is, in its namespace.
func (d *demo) node(hostName string, args ...string) error {
	if err := os.MkdirAll(d.place(hostName), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(d.place(hostName+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args = append(args, "--host", hostName, "--run-dir", d.place(hostName, "run"), "--state-dir", d.place(hostName, "state"), "--bpffs", lab.PinDir(d.cfg.Prefix))
	cmd := exec.Command(d.cfg.Program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := host.Start(d.lab.HostNamespace(hostName), cmd); err != nil {
		return fmt.Errorf("start bocage on %s: %w", hostName, err)
	}
	process := &nodeProcess{cmd: cmd, log: log.Name(), done: make(chan struct{})}
	d.nodes[hostName] = process
	go func() {
		_ = cmd.Wait() // its end shows in its state
		close(process.done)
	}()
	return nil
}

// kill9 ends a host's process the hard way and waits until it is gone.
func (d *demo) kill9(ctx context.Context, hostName string) error {
	pid := d.nodes[hostName].cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill -9 the process of %s: %w", hostName, err)
	}
	select {
	case <-d.nodes[hostName].done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start brings up controller and agent of h1.
func (d *demo) start(ctx context.Context) error {
	var err error
	if d.lab, err = lab.New(ctx, lab.Config{Prefix: d.cfg.Prefix, Program: d.cfg.Program}); err != nil {
		return err
	}
	if err := d.startNode("h1"); err != nil {
		return err
	}
	took, err := within(ctx, 30*time.Second, "bocage up answers", func() (bool, error) {
		if err := d.nodes["h1"].ended(); err != nil {
			return true, err
		}
		result, err := d.cli.run(ctx, "", "get", "hosts", "-o", "name")
		return err == nil && result.out == "hosts/h1\n", nil
	})
	if err != nil {
		return err
	}
	d.held("bocage up: controller, agent, state, events and history in one process tree (ready after %.1f s)", took.Seconds())
	return nil
}

// startNode runs what a host runs: h1 everything, others an agent.
func (d *demo) startNode(hostName string) error {
	if hostName == "h1" {
		return d.node("h1", "up", "--quarantine-for", quarantineFor.String(), "--api-listen", "",
			"--transport-listen", d.lab.ManagementAddress("h1").String()+":4222")
	}
	return d.node(hostName, "agent", "--join", d.place(hostName+".token"),
		"--controllers", d.lab.ManagementAddress("h1").String()+":4222")
}

// saveLogs keeps the processes' logs of a failed demo where CI and people find them.
func (d *demo) saveLogs() {
	for name, process := range d.nodes {
		data, err := os.ReadFile(process.log)
		if err != nil {
			continue
		}
		const most = 6000
		if len(data) > most {
			data = data[len(data)-most:]
		}
		fmt.Fprintf(d.out, "\nlog of %s, its end:\n", name)
		d.show(string(data))
	}
}

func (d *demo) down(ctx context.Context) error {
	var faults []error
	enforcing, err := d.snapshot.Pinned(d.cfg.Prefix)
	if err != nil {
		faults = append(faults, err)
	}
	for _, hostName := range []string{"h2", "h1"} {
		if d.nodes[hostName] == nil {
			continue
		}
		off := exec.CommandContext(ctx, d.cfg.Program, "off", "--purge", "--host", hostName,
			"--run-dir", d.place(hostName, "run"), "--state-dir", d.place(hostName, "state"))
		var said bytes.Buffer
		off.Stdout, off.Stderr = &said, &said
		err := host.Start(d.lab.HostNamespace(hostName), off)
		if err == nil {
			err = off.Wait()
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("bocage off on %s: %w: %s", hostName, err, said.String()))
			continue
		}
		d.held("bocage off --purge on %s", hostName)
	}
	if d.lab != nil {
		if err := d.lab.Down(ctx); err != nil {
			faults = append(faults, err)
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		faults = append(faults, err)
	}
	residue, err := d.snapshot.Residue(d.cfg.Prefix)
	if err != nil {
		faults = append(faults, err)
	}
	for _, left := range residue {
		faults = append(faults, fmt.Errorf("left behind: %s", left))
	}
	if len(enforcing) == 0 && len(d.nodes) > 0 {
		faults = append(faults, errors.New("nothing was pinned: whether the kernel freed what enforced is not known"))
	}
	if err := freed(ctx, enforcing); err != nil {
		faults = append(faults, err)
	}
	if len(faults) == 0 {
		d.held("no link, map, namespace, rule, file or process is left")
	}
	return errors.Join(faults...)
}

// freed waits until the kernel has let go of programs, maps and links, which it does a
// little after the last use.
func freed(ctx context.Context, objects []host.BPFObject) error {
	_, err := within(ctx, 10*time.Second, "the kernel frees the programs, maps and links that enforced", func() (bool, error) {
		held, err := host.BPFObjects()
		if err != nil {
			return false, err
		}
		left := slices.DeleteFunc(held, func(o host.BPFObject) bool {
			return !slices.Contains(objects, host.BPFObject{Kind: o.Kind, ID: o.ID})
		})
		if len(left) > 0 {
			return false, fmt.Errorf("%d are left, such as %v", len(left), left[0])
		}
		return true, nil
	})
	return err
}

func (d *demo) whatNext() {
	fmt.Fprintf(d.out, `
Everything is still running. Try:
  alias bocage='%s --run-dir %s'
  bocage observe -f
  bocage get applications
  bocage explain dev/red shop/db 5432
  bocage incident ls
  bocage hunt "SELECT source, destination, destination_port, count(*) n FROM flows GROUP BY ALL ORDER BY n DESC LIMIT 10"
  ip netns exec %s nmap -Pn -sV -p 22 %s
Take it down:
  bocage demo --name %s --down %s
`, d.cfg.Program, d.cli.runDir, d.lab.Namespace("dev/red"), d.lab.Address("shop/db"), d.cfg.Prefix, d.dir)
}

// Down takes down a demo that was kept.
func Down(ctx context.Context, cfg Config, dir string) error {
	if !strings.HasPrefix(filepath.Base(dir), "bocage-demo-") {
		return fmt.Errorf("%s is not the folder of a kept demo, which is named bocage-demo-*", dir)
	}
	opened, err := lab.Open(lab.Config{Prefix: cfg.Prefix, Program: cfg.Program})
	if err != nil {
		return err
	}
	var snapshot lab.Snapshot
	before, err := os.ReadFile(filepath.Join(dir, beforeFile))
	if err == nil {
		err = json.Unmarshal(before, &snapshot)
	}
	if err != nil {
		return fmt.Errorf("find out what was there before the demo: %w", err)
	}
	d := &demo{teller: teller{cfg.Out, time.Now()}, cfg: cfg, dir: dir, lab: opened, snapshot: snapshot,
		nodes: map[string]*nodeProcess{"h1": {}, "h2": {}}}
	return d.down(ctx)
}
