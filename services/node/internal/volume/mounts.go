package volume

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// mountpoints returns the mount points at or below dir, deepest first.
func mountpoints(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			out = append(out, point)
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(out)))
	return out, scanner.Err()
}

// unescape decodes the kernel's octal escapes in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func isMountpoint(dir string) (bool, error) {
	list, err := mountpoints(dir)
	for _, p := range list {
		if p == dir {
			return true, err
		}
	}
	return false, err
}

// unmountBelow unmounts everything at or below dir.
func unmountBelow(dir string) error {
	for range 3 { // mounts may be stacked
		list, err := mountpoints(dir)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		var all []error
		for _, p := range list {
			if err := unix.Unmount(p, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				all = append(all, fmt.Errorf("unmount %s: %w", p, err))
			}
		}
		if err := errors.Join(all...); err != nil {
			return err
		}
	}
	return fmt.Errorf("unmount %s: still mounted", dir)
}

// tmpfs mounts a tmpfs at dir unless something is mounted there already. A size of 0 means
// no limit.
func tmpfs(dir string, size int64, mode string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if is, err := isMountpoint(dir); err != nil || is {
		return err
	}
	options := "mode=" + mode
	if size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return nil
}
