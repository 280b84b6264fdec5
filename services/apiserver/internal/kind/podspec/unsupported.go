package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// unsupported refuses what Kubernetes supports and Keelson does not support yet, if ignoring it
// would run something other than what was requested. DIFFERENCES.md lists these fields for users.
func (v *validator) unsupported(p *field.Path) {
	s := v.spec
	refuse := func(set bool, name, what string) {
		if set {
			v.Unsupported(p.Child(name), what)
		}
	}
	refuse(s.HostUsers != nil && !*s.HostUsers, "hostUsers", "user namespaces are")
	refuse(len(s.ResourceClaims) > 0, "resourceClaims", "resource claims are")
	if c := s.SecurityContext; c != nil {
		refuse(c.WindowsOptions != nil, "securityContext", "Windows options are")
	}
	if s.OS != nil && s.OS.Name == "" {
		v.Required(p.Child("os", "name"), "")
	} else if s.OS != nil && s.OS.Name != corev1.Windows && s.OS.Name != corev1.Linux {
		v.List = append(v.List, field.NotSupported(p.Child("os"), s.OS.Name, []corev1.OSName{corev1.Linux, corev1.Windows}))
	}
	for i := range s.InitContainers {
		v.unsupportedContainer(&s.InitContainers[i], p, "initContainers", i)
	}
	for i := range s.Containers {
		v.unsupportedContainer(&s.Containers[i], p, "containers", i)
	}
	for i := range s.EphemeralContainers {
		v.unsupportedContainer(plain(&s.EphemeralContainers[i]), p, "ephemeralContainers", i)
	}
}

func (v *validator) unsupportedContainer(c *corev1.Container, p *field.Path, list string, i int) {
	refuse := func(set bool, name, what string) {
		if set {
			v.Unsupported(p.Child(list).Index(i).Child(name), what)
		}
	}
	for j := range c.RestartPolicyRules {
		refuse(c.RestartPolicyRules[j].Action == corev1.ContainerRestartRuleActionRestartAllContainers,
			"restartPolicyRules", "the action RestartAllContainers is")
	}
	refuse(len(c.VolumeDevices) > 0, "volumeDevices", "block volumes are")
	refuse(len(c.Resources.Claims) > 0, "resources", "resource claims are")
	if s := c.SecurityContext; s != nil {
		refuse(s.WindowsOptions != nil, "securityContext", "Windows options are")
		refuse(s.ProcMount != nil && *s.ProcMount == corev1.UnmaskedProcMount, "securityContext", "procMount Unmasked is")
	}
	for j := range c.Env {
		if from := c.Env[j].ValueFrom; from != nil {
			refuse(from.FileKeyRef != nil, "env", "variables from files are")
		}
	}
}

// unsupportedSources returns the names of volume sources that nodes cannot mount.
func unsupportedSources(s *corev1.VolumeSource) []string {
	var names []string
	add := func(set bool, name string) {
		if set {
			names = append(names, name)
		}
	}
	add(s.GCEPersistentDisk != nil, "gcePersistentDisk")
	add(s.AWSElasticBlockStore != nil, "awsElasticBlockStore")
	add(s.GitRepo != nil, "gitRepo")
	add(s.NFS != nil, "nfs")
	add(s.ISCSI != nil, "iscsi")
	add(s.Glusterfs != nil, "glusterfs")
	add(s.RBD != nil, "rbd")
	add(s.FlexVolume != nil, "flexVolume")
	add(s.Cinder != nil, "cinder")
	add(s.CephFS != nil, "cephfs")
	add(s.Flocker != nil, "flocker")
	add(s.FC != nil, "fc")
	add(s.AzureFile != nil, "azureFile")
	add(s.VsphereVolume != nil, "vsphereVolume")
	add(s.Quobyte != nil, "quobyte")
	add(s.AzureDisk != nil, "azureDisk")
	add(s.PhotonPersistentDisk != nil, "photonPersistentDisk")
	add(s.PortworxVolume != nil, "portworxVolume")
	add(s.ScaleIO != nil, "scaleIO")
	add(s.StorageOS != nil, "storageos")
	add(s.CSI != nil, "csi")
	add(s.Ephemeral != nil, "ephemeral")
	return names
}
