package suricata

import (
	"bytes"
	_ "embed"
	"fmt"
	"text/template"
)

// What the engine is told. The templates say why.
var (
	//go:embed engine.yaml.tmpl
	engineTemplate string
	//go:embed tenant.yaml.tmpl
	tenantTemplate string
	//go:embed variables.yaml
	variables string
	//go:embed classification.config
	classification string
	//go:embed reference.config
	reference string
)

// Names of the steering links' ends inside the engine's namespace.
const (
	outsideLink = "outside"
	insideLink  = "inside"
)

// settings fill engine.yaml.tmpl.
type settings struct {
	layout
	// Check makes the configuration with which signatures are tried out: the
	// same engine without links, tenants and outputs.
	Check bool
	// Tenants are loaded before the first packet.
	Tenants []profile
}

func (s settings) Variables() string      { return variables }
func (s settings) Etc() string            { return s.etc() + "/" }
func (s settings) Log() string            { return s.log() + "/" }
func (s settings) Socket() string         { return s.socket() }
func (s settings) Classification() string { return s.classification() }
func (s settings) Reference() string      { return s.reference() }
func (s settings) Threshold() string      { return s.threshold() }

// TenantFile is where a profile's configuration lies.
func (s settings) TenantFile(p profile) string { return s.profile(p.Number, p.Digest, kindTenant) }

type engineLink struct {
	Name, Copy string
	Cluster    int // any number, of its own in the namespace
}

// Links are the two ends, each copied to the other.
func (s settings) Links() []engineLink {
	return []engineLink{{outsideLink, insideLink, 91}, {insideLink, outsideLink, 92}}
}

func (s settings) render() ([]byte, error) { return render("engine.yaml", engineTemplate, s) }

// renderTenant gives a profile its configuration: the file of its signatures,
// and the variables, without which almost no public signature loads.
func renderTenant(l layout, p profile) ([]byte, error) {
	return render("tenant.yaml", tenantTemplate, struct{ Variables, Etc, Rules string }{
		variables, l.etc() + "/", l.profile(p.Number, p.Digest, kindRules)})
}

func render(name, text string, data any) ([]byte, error) {
	parsed, err := template.New(name).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	var b bytes.Buffer
	if err := parsed.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	return b.Bytes(), nil
}
