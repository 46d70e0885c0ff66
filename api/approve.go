package api

import "bocage.dev/bocage"

const subresourceApproval = "approval"

func approvable(kind bocage.Kind) bool { return kind.Name == "Guardrail" || kind.Name == "Exception" }
