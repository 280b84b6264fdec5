package check

// deprecatedLabels of nodes, and what replaced them.
var deprecatedLabels = map[string]string{
	"beta.kubernetes.io/os":                    `deprecated since v1.14; use "kubernetes.io/os" instead`,
	"beta.kubernetes.io/arch":                  `deprecated since v1.14; use "kubernetes.io/arch" instead`,
	"beta.kubernetes.io/instance-type":         `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
	"failure-domain.beta.kubernetes.io/region": `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	"failure-domain.beta.kubernetes.io/zone":   `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
}

// DeprecatedNodeLabel is what to say of a node's label that others have replaced;
// empty of any other.
func DeprecatedNodeLabel(key string) string { return deprecatedLabels[key] }
