// Package packaging holds what an installation consists of besides the program:
// systemd units, users and folders. The program carries them, so that `bocage
// install` needs nothing else.
//
// It never runs anything and knows no machine.
package packaging

import _ "embed"

//go:embed bocage-agent.service
var agentUnit string

//go:embed bocage-controller.service
var controllerUnit string

//go:embed functions.conf
var functionsDropIn string

//go:embed bocage.sysusers
var users string

//go:embed bocage.tmpfiles
var folders string

// File is one file of an installation.
type File struct {
	Path string // from the root of the machine
	Text string
	// Optional files are installed on request only.
	Optional bool
}

// Units are the names of the services.
func Units() []string { return []string{"bocage-agent.service", "bocage-controller.service"} }

// Users are the names of the users, and of their groups.
func Users() []string { return []string{"bocage", "bocage-controller"} }

// Program is where the program is installed.
const Program = "usr/bin/bocage"

// Files are what an installation consists of besides the program.
func Files() []File {
	return []File{
		{Path: "usr/lib/systemd/system/bocage-agent.service", Text: agentUnit},
		{Path: "usr/lib/systemd/system/bocage-controller.service", Text: controllerUnit},
		{Path: "usr/lib/sysusers.d/bocage.conf", Text: users},
		{Path: "usr/lib/tmpfiles.d/bocage.conf", Text: folders},
		{Path: "etc/systemd/system/bocage-agent.service.d/functions.conf", Text: functionsDropIn, Optional: true},
	}
}
