package volume

import (
	"context"
	"errors"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/pod"
)

// defaultMode is the default mode of files made of API objects.
const defaultMode = 0o644

// write writes the files of a volume to its tmpfs.
func (m mount) write(plugin string, payload map[string]file) (Mounted, error) {
	dir := m.set.dir(m.pod.UID, plugin, m.v.Name)
	out := Mounted{Path: dir}
	if err := tmpfs(dir, 0, "0755"); err != nil {
		return out, err
	}
	if m.group != nil {
		if err := errors.Join(chgrp(dir, m.group), os.Chmod(dir, dirMode(m.group))); err != nil {
			return out, err
		}
	}
	_, err := writeAtomically(dir, payload, m.group)
	return out, err
}

// configMap sets up a directory with one file per key of a ConfigMap.
func (m mount) configMap(ctx context.Context) (Mounted, error) {
	s := m.v.ConfigMap
	payload, err := m.configMapFiles(ctx, s.Name, s.Items, s.DefaultMode, isTrue(s.Optional))
	if err != nil {
		return Mounted{}, err
	}
	out, err := m.write("configmap", payload)
	out.ReadOnly = true
	return out, err
}

// secret sets up a directory with one file per key of a Secret.
func (m mount) secret(ctx context.Context) (Mounted, error) {
	s := m.v.Secret
	payload, err := m.secretFiles(ctx, s.SecretName, s.Items, s.DefaultMode, isTrue(s.Optional))
	if err != nil {
		return Mounted{}, err
	}
	out, err := m.write("secret", payload)
	out.ReadOnly = true
	return out, err
}

// downwardAPI sets up a directory with files that hold fields of the pod.
func (m mount) downwardAPI() (Mounted, error) {
	s := m.v.DownwardAPI
	payload, err := m.downwardFiles(s.Items, s.DefaultMode)
	if err != nil {
		return Mounted{}, err
	}
	out, err := m.write("downward-api", payload)
	out.ReadOnly = true
	return out, err
}

// projected sets up a directory that combines several sources.
func (m mount) projected(ctx context.Context) (Mounted, error) {
	s := m.v.Projected
	all := map[string]file{}
	var errs []error
	for i := range s.Sources {
		payload, err := m.projection(ctx, &s.Sources[i], s.DefaultMode)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for k, v := range payload {
			all[k] = v
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Mounted{}, err
	}
	out, err := m.write("projected", all)
	out.ReadOnly = true
	return out, err
}

func (m mount) projection(ctx context.Context, s *corev1.VolumeProjection, mode *int32) (map[string]file, error) {
	switch {
	case s.ConfigMap != nil:
		return m.configMapFiles(ctx, s.ConfigMap.Name, s.ConfigMap.Items, mode, isTrue(s.ConfigMap.Optional))
	case s.Secret != nil:
		return m.secretFiles(ctx, s.Secret.Name, s.Secret.Items, mode, isTrue(s.Secret.Optional))
	case s.DownwardAPI != nil:
		return m.downwardFiles(s.DownwardAPI.Items, mode)
	case s.ServiceAccountToken != nil:
		token, err := m.set.tokens.get(ctx, m.pod, s.ServiceAccountToken)
		if err != nil {
			return nil, err
		}
		f := file{data: []byte(token), mode: modeOf(nil, mode), uid: m.user}
		if m.user != nil || m.group != nil {
			f.mode = 0o600
		}
		return map[string]file{s.ServiceAccountToken.Path: f}, nil
	case s.ClusterTrustBundle != nil:
		return nil, errors.New("clusterTrustBundle: not supported")
	case s.PodCertificate != nil:
		return nil, errors.New("podCertificate: not supported")
	}
	return nil, errors.New("unsupported source of a projected volume")
}

func (m mount) configMapFiles(ctx context.Context, name string, items []corev1.KeyToPath, mode *int32, optional bool) (map[string]file, error) {
	cm, err := m.set.cfg.Objects.ConfigMap(ctx, m.pod.Namespace, name)
	if err != nil {
		return nil, fmt.Errorf("configmap %q: %w", name, err)
	}
	if cm == nil {
		if optional {
			return map[string]file{}, nil
		}
		return nil, fmt.Errorf("configmap %q not found", name)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	out, err := pick(data, items, mode, optional)
	if err != nil {
		return nil, fmt.Errorf("configmap %q: %w", name, err)
	}
	return out, nil
}

func (m mount) secretFiles(ctx context.Context, name string, items []corev1.KeyToPath, mode *int32, optional bool) (map[string]file, error) {
	secret, err := m.set.cfg.Objects.Secret(ctx, m.pod.Namespace, name)
	if err != nil {
		return nil, fmt.Errorf("secret %q: %w", name, err)
	}
	if secret == nil {
		if optional {
			return map[string]file{}, nil
		}
		return nil, fmt.Errorf("secret %q not found", name)
	}
	out, err := pick(secret.Data, items, mode, optional)
	if err != nil {
		return nil, fmt.Errorf("secret %q: %w", name, err)
	}
	return out, nil
}

// pick selects the keys that become files: those in items, or all of them.
func pick(data map[string][]byte, items []corev1.KeyToPath, mode *int32, optional bool) (map[string]file, error) {
	out := map[string]file{}
	if len(items) == 0 {
		for k, v := range data {
			out[k] = file{data: v, mode: modeOf(nil, mode)}
		}
		return out, nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return nil, fmt.Errorf("references non-existent config key: %s", item.Key)
		}
		out[item.Path] = file{data: v, mode: modeOf(item.Mode, mode)}
	}
	return out, nil
}

func (m mount) downwardFiles(items []corev1.DownwardAPIVolumeFile, mode *int32) (map[string]file, error) {
	out := map[string]file{}
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = pod.Field(m.pod, item.FieldRef.FieldPath, podIPs(m.pod), m.set.cfg.HostIPs())
		case item.ResourceFieldRef != nil:
			c, _ := pod.Find(m.pod, item.ResourceFieldRef.ContainerName)
			if c == nil {
				err = fmt.Errorf("container %s not found", item.ResourceFieldRef.ContainerName)
				break
			}
			value, err = pod.ResourceField(c, item.ResourceFieldRef, m.set.cfg.Allocatable())
		default:
			err = errors.New("has neither fieldRef nor resourceFieldRef")
		}
		if err != nil {
			return nil, fmt.Errorf("downwardAPI %s: %w", item.Path, err)
		}
		out[item.Path] = file{data: []byte(value), mode: modeOf(item.Mode, mode)}
	}
	return out, nil
}

func podIPs(p *corev1.Pod) []string {
	var out []string
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

func modeOf(own, all *int32) os.FileMode {
	switch {
	case own != nil:
		return os.FileMode(*own) & os.ModePerm
	case all != nil:
		return os.FileMode(*all) & os.ModePerm
	}
	return defaultMode
}

func isTrue(b *bool) bool { return b != nil && *b }
