package check

// deprecatedLabels are deprecated labels of nodes, with their replacements.
var deprecatedLabels = map[string]string{
	"beta.kubernetes.io/os":                    `deprecated since v1.14; use "kubernetes.io/os" instead`,
	"beta.kubernetes.io/arch":                  `deprecated since v1.14; use "kubernetes.io/arch" instead`,
	"beta.kubernetes.io/instance-type":         `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
	"failure-domain.beta.kubernetes.io/region": `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	"failure-domain.beta.kubernetes.io/zone":   `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
}

// DeprecatedNodeLabel returns the warning for a deprecated label of nodes, or "" for any other
// key.
func DeprecatedNodeLabel(key string) string { return deprecatedLabels[key] }
