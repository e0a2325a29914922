package topics

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The checks of values mirror ConfigDef's validators. They are given a canonical value and say what is wrong with it, in Kafka's words, or nothing.

// atLeast bounds a number from below.
func atLeast(bound int64) func(string) string {
	return func(value string) string {
		if n, err := strconv.ParseInt(value, 10, 64); err != nil || n < bound {
			return fmt.Sprintf("Value must be at least %d", bound)
		}
		return ""
	}
}

// between bounds a number from both sides.
func between(low, high int64) func(string) string {
	return func(value string) string {
		if wrong := atLeast(low)(value); wrong != "" {
			return wrong
		}
		if n, err := strconv.ParseInt(value, 10, 64); err != nil || n > high {
			return fmt.Sprintf("Value must be no more than %d", high)
		}
		return ""
	}
}

// gzipLevel knows that -1 stands for the default, and that 0 is no level.
func gzipLevel(value string) string {
	if value != "-1" && between(1, 9)(value) != "" {
		return "Value must be between 1 and 9 or equal to -1"
	}
	return ""
}

// ratio is a number from 0 to 1.
func ratio(value string) string {
	f, err := strconv.ParseFloat(value, 64)
	switch {
	case err != nil || f < 0:
		return "Value must be at least 0"
	case f > 1:
		return "Value must be no more than 1"
	}
	return ""
}

func oneOf(values ...string) func(string) string {
	return func(value string) string {
		if !slices.Contains(values, value) {
			return fmt.Sprintf("String must be one of: %s", strings.Join(values, ", "))
		}
		return ""
	}
}

// each checks every item of a list.
func each(check func(string) string) func(string) string {
	return func(value string) string {
		for _, item := range splitList(value) {
			if wrong := check(item); wrong != "" {
				return wrong
			}
		}
		return ""
	}
}

var throttledReplica = regexp.MustCompile(`^([0-9]+:[0-9]+)?$`)

// throttledReplicas is ThrottledReplicaListValidator.
func throttledReplicas(value string) string {
	for _, item := range splitList(value) {
		if value != "*" && !throttledReplica.MatchString(item) {
			return "must be the literal '*' or a list of replicas in the following format: [partitionId]:[brokerId],[partitionId]:[brokerId],..."
		}
	}
	return ""
}
