package topics

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The checks of values mirror ConfigDef's validators and their wording. They are given canonical values.

// atLeast bounds a number from below.
func atLeast(bound int64) func(string) error {
	return func(value string) error {
		if n, err := strconv.ParseInt(value, 10, 64); err != nil || n < bound {
			return fmt.Errorf("Value must be at least %d", bound)
		}
		return nil
	}
}

// between bounds a number from both sides.
func between(low, high int64) func(string) error {
	return func(value string) error {
		if err := atLeast(low)(value); err != nil {
			return err
		}
		if n, err := strconv.ParseInt(value, 10, 64); err != nil || n > high {
			return fmt.Errorf("Value must be no more than %d", high)
		}
		return nil
	}
}

// gzipLevel knows that -1 stands for the default, and that 0 is no level.
func gzipLevel(value string) error {
	if value != "-1" && between(1, 9)(value) != nil {
		return fmt.Errorf("Value must be between 1 and 9 or equal to -1")
	}
	return nil
}

// ratio is a number from 0 to 1.
func ratio(value string) error {
	f, err := strconv.ParseFloat(value, 64)
	switch {
	case err != nil || f < 0:
		return fmt.Errorf("Value must be at least 0")
	case f > 1:
		return fmt.Errorf("Value must be no more than 1")
	}
	return nil
}

func oneOf(values ...string) func(string) error {
	return func(value string) error {
		if !slices.Contains(values, value) {
			return fmt.Errorf("String must be one of: %s", strings.Join(values, ", "))
		}
		return nil
	}
}

// each checks every item of a list.
func each(check func(string) error) func(string) error {
	return func(value string) error {
		for _, item := range splitList(value) {
			if err := check(item); err != nil {
				return err
			}
		}
		return nil
	}
}

var throttledReplica = regexp.MustCompile(`^([0-9]+:[0-9]+)?$`)

// throttledReplicas is ThrottledReplicaListValidator.
func throttledReplicas(value string) error {
	for _, item := range splitList(value) {
		if value != "*" && !throttledReplica.MatchString(item) {
			return fmt.Errorf("must be the literal '*' or a list of replicas in the following format: [partitionId]:[brokerId],[partitionId]:[brokerId],...")
		}
	}
	return nil
}
