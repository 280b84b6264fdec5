package podspec

import (
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

func (v *validator) validateVolumes(p *field.Path) {
	volumes := v.spec.Volumes
	if len(volumes) == 0 {
		return
	}
	v.volumes = make(map[string]*corev1.VolumeSource, len(volumes))
	for i := range volumes {
		volume, at, before := &volumes[i], p.Index(i), len(v.List)
		if volume.Name == "" {
			v.Required(at.Child("name"), "")
		} else {
			v.Messages(at, "name", volume.Name, check.Label(volume.Name))
		}
		if _, twice := v.volumes[volume.Name]; twice {
			v.Duplicate(at.Child("name"), volume.Name)
		}
		// An invalid volume is not available for mounts.
		if v.validateSource(&volume.VolumeSource, at); len(v.List) == before {
			v.volumes[volume.Name] = &volume.VolumeSource
		}
	}
}

func (v *validator) validateSource(s *corev1.VolumeSource, p *field.Path) {
	count := 0
	one := func(set bool, name string) bool {
		if !set {
			return false
		}
		if count++; count > 1 {
			v.Forbidden(p.Child(name), "may not specify more than 1 volume type")
			return false
		}
		return true
	}
	if one(s.EmptyDir != nil, "emptyDir") {
		v.validateEmptyDir(s.EmptyDir, p.Child("emptyDir"))
	}
	if one(s.HostPath != nil, "hostPath") {
		v.validateHostPath(s.HostPath, p.Child("hostPath"))
	}
	if one(s.Secret != nil, "secret") {
		at := p.Child("secret")
		if s.Secret.SecretName == "" {
			v.Required(at.Child("secretName"), "")
		}
		v.validateMode(s.Secret.DefaultMode, at, "defaultMode")
		v.validateItems(s.Secret.Items, at)
	}
	if one(s.ConfigMap != nil, "configMap") {
		at := p.Child("configMap")
		if s.ConfigMap.Name == "" {
			v.Required(at.Child("name"), "")
		}
		v.validateMode(s.ConfigMap.DefaultMode, at, "defaultMode")
		v.validateItems(s.ConfigMap.Items, at)
	}
	if one(s.DownwardAPI != nil, "downwardAPI") {
		at := p.Child("downwardAPI")
		v.validateMode(s.DownwardAPI.DefaultMode, at, "defaultMode")
		v.validateDownward(s.DownwardAPI.Items, at)
	}
	if one(s.Projected != nil, "projected") {
		v.validateProjected(s.Projected, p.Child("projected"))
	}
	if one(s.PersistentVolumeClaim != nil, "persistentVolumeClaim") && s.PersistentVolumeClaim.ClaimName == "" {
		v.Required(p.Child("persistentVolumeClaim", "claimName"), "")
	}
	if one(s.Image != nil, "image") {
		at := p.Child("image")
		if s.Image.Reference == "" {
			v.Required(at.Child("reference"), "")
		}
		check.OneOf(&v.Errors, at, "pullPolicy", s.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	}
	for _, other := range unsupportedSources(s) {
		if one(true, other) {
			v.Unsupported(p.Child(other), "volumes of this type are")
		}
	}
	if count == 0 {
		v.Required(p, "must specify a volume type")
	}
}

func (v *validator) validateEmptyDir(s *corev1.EmptyDirVolumeSource, p *field.Path) {
	if s.SizeLimit != nil && s.SizeLimit.Sign() < 0 {
		v.Forbidden(p.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
	}
}

func (v *validator) validateHostPath(s *corev1.HostPathVolumeSource, p *field.Path) {
	if s.Path == "" {
		v.Required(p.Child("path"), "")
		return
	}
	v.noBacksteps(s.Path, p, "path")
	if s.Type != nil {
		check.Supported(&v.Errors, p, "type", *s.Type,
			corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
			corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)
	}
}

func (v *validator) noBacksteps(path string, p *field.Path, child string) {
	for part := range strings.SplitSeq(path, "/") {
		if part == ".." {
			v.Invalid(p.Child(child), path, "must not contain '..'")
			return
		}
	}
}

// descending checks that a path is relative and contains no "..".
func (v *validator) descending(path string, p *field.Path, child string) {
	if strings.HasPrefix(path, "/") {
		v.Invalid(p.Child(child), path, "must be a relative path")
	}
	v.noBacksteps(path, p, child)
}

// fileName checks the path of a file in a volume, where names that begin with ".." are reserved.
func (v *validator) fileName(path string, p *field.Path, child string) {
	v.descending(path, p, child)
	if strings.HasPrefix(path, "..") && !strings.HasPrefix(path, "../") {
		v.Invalid(p.Child(child), path, "must not start with '..'")
	}
}

func (v *validator) validateMode(mode *int32, p *field.Path, child string) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		v.Invalid(p.Child(child), *mode, "must be a number between 0 and 0777 (octal), both inclusive")
	}
}

func (v *validator) validateItems(items []corev1.KeyToPath, p *field.Path) {
	for i := range items {
		at := p.Child("items").Index(i)
		if items[i].Key == "" {
			v.Required(at.Child("key"), "")
		}
		if items[i].Path == "" {
			v.Required(at.Child("path"), "")
		}
		v.fileName(items[i].Path, at, "path")
		v.validateMode(items[i].Mode, at, "mode")
	}
}

func (v *validator) validateDownward(items []corev1.DownwardAPIVolumeFile, p *field.Path) {
	for i := range items {
		file, at := &items[i], p // the list's parent, as in Kubernetes' errors
		if file.Path == "" {
			v.Required(at.Child("path"), "")
		}
		v.fileName(file.Path, at, "path")
		switch {
		case file.FieldRef != nil:
			v.validateFieldRef(file.FieldRef, fieldsOfVolume, at.Child("fieldRef"))
			if file.ResourceFieldRef != nil {
				v.Invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
			}
		case file.ResourceFieldRef != nil:
			v.validateResourceRef(file.ResourceFieldRef, at.Child("resourceFieldRef"), true)
		default:
			v.Required(at, "one of fieldRef and resourceFieldRef is required")
		}
		v.validateMode(file.Mode, at, "mode")
	}
}

func (v *validator) validateProjected(s *corev1.ProjectedVolumeSource, p *field.Path) {
	v.validateMode(s.DefaultMode, p, "defaultMode")
	var paths check.Seen
	for i := range s.Sources {
		v.validateProjection(&s.Sources[i], p, p.Child("sources").Index(i), &paths)
	}
}

// validateProjection checks one source, at p, of the projected volume at parent. paths collects
// the files of all sources.
func (v *validator) validateProjection(s *corev1.VolumeProjection, parent, p *field.Path, paths *check.Seen) {
	count := 0
	one := func(set bool) bool {
		if !set {
			return false
		}
		if count++; count > 1 {
			v.Forbidden(p, "may not specify more than 1 volume type per source")
			return false
		}
		return true
	}
	unique := func(path, by string) {
		if path != "" && paths.Add(path) {
			v.Invalid(parent, by, "conflicting duplicate paths")
		}
	}
	if one(s.Secret != nil) {
		v.validateProjectedKeys(s.Secret.Name, s.Secret.Items, p.Child("secret"), unique)
	}
	if one(s.ConfigMap != nil) {
		v.validateProjectedKeys(s.ConfigMap.Name, s.ConfigMap.Items, p.Child("configMap"), unique)
	}
	if one(s.DownwardAPI != nil) {
		v.validateDownward(s.DownwardAPI.Items, p.Child("downwardAPI"))
		for _, item := range s.DownwardAPI.Items {
			unique(item.Path, item.Path)
		}
	}
	if one(s.ServiceAccountToken != nil) {
		v.validateToken(s.ServiceAccountToken, parent, p.Child("serviceAccountToken"))
	}
	if one(s.ClusterTrustBundle != nil) {
		v.Unsupported(p.Child("clusterTrustBundle"), "cluster trust bundles are")
	}
	if one(s.PodCertificate != nil) {
		v.Unsupported(p.Child("podCertificate"), "pod certificates are")
	}
}

func (v *validator) validateProjectedKeys(name string, items []corev1.KeyToPath, p *field.Path, unique func(path, by string)) {
	if name == "" {
		v.Required(p.Child("name"), "")
	}
	v.validateItems(items, p)
	for _, item := range items {
		unique(item.Path, name)
	}
}

func (v *validator) validateToken(s *corev1.ServiceAccountTokenProjection, parent, p *field.Path) {
	if v.inPod && v.spec.ServiceAccountName == "" {
		v.Forbidden(p, "must not be specified when serviceAccountName is not set")
	}
	if seconds := s.ExpirationSeconds; seconds != nil {
		if *seconds < 10*60 {
			v.Invalid(p.Child("expirationSeconds"), *seconds, "may not specify a duration less than 10 minutes")
		}
		if *seconds > math.MaxUint32+1 {
			v.Invalid(p.Child("expirationSeconds"), *seconds, "may not specify a duration larger than 2^32 seconds")
		}
	}
	if s.Path == "" {
		v.Required(parent.Child("path"), "")
	}
	v.fileName(s.Path, parent, "path")
}
