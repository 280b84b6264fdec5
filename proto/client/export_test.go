package client

import "time"

// SetLinger sets how long a closed connection to a pod may take to deliver what was written.
func SetLinger(d time.Duration) (restore func()) {
	before := lingerTime
	lingerTime = d
	return func() { lingerTime = before }
}
