// Package profiles holds signatures to start with, written for traffic between
// workloads: packs that a person takes into an InspectionProfile, reads, and
// changes.
//
// A pack promises that what it drops is an attack: a block makes an incident, so
// a signature that ordinary traffic can meet only alerts, with a severity of 2
// or worse. Its tests hold it to lists of attacks and of ordinary requests. It
// never names addresses, since who may speak to whom is policy's to say.
package profiles

import (
	_ "embed"
)

//go:embed web-attacks.rules
var webAttacks string

// Starter returns the packs by name.
func Starter() map[string]string {
	return map[string]string{"web-attacks": webAttacks}
}
