"""The compatibility driver of kafka-python."""

from kafka import (
    ConsumerRebalanceListener,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions, NewTopic
from kafka.errors import KafkaError

import driver


class KafkaPython(driver.Client):
    def produce(self):
        codec = None if self.job.codec == "none" else self.job.codec
        producer = KafkaProducer(
            bootstrap_servers=self.job.bootstrap,
            compression_type=codec,
            enable_idempotence=self.job.idempotent,
            acks="all",
            linger_ms=20,
        )
        sent = [producer.send(self.job.topic, key=key, value=value) for key, value in driver.records()]
        for each in sent:
            each.get(timeout=driver.LIMIT_SECONDS)
        producer.close()

    def consumer(self):
        return KafkaConsumer(
            bootstrap_servers=self.job.bootstrap,
            group_id=self.job.group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=self.job.session,
            heartbeat_interval_ms=500,
            isolation_level=self.job.isolation,
        )

    def subscribe(self, consumer, **listener):
        """Subscribes, and waits until the topic is known. A member that hears of its topic only after it joined joins
        once more, and kafka-python forgets that assignment for good where a poll's time ends while it is on its way."""
        consumer.subscribe([self.job.topic], **listener)
        self.eventually("find the topic", lambda: consumer.partitions_for_topic(self.job.topic))

    def poll(self, consumer):
        seen = 0
        while seen < self.job.max:
            self.in_time(f"saw {seen} of {self.job.max} records")
            for batch in consumer.poll(timeout_ms=200, max_records=self.job.max - seen).values():
                for record in batch:
                    self.show(record.partition, record.offset, record.key, record.value)
                    seen += 1

    def consume(self):
        consumer = self.consumer()
        consumer.assign([TopicPartition(topic, 0) for topic in self.job.topics])
        consumer.seek_to_beginning()
        self.poll(consumer)
        consumer.close()

    def resume(self):
        consumer = self.consumer()
        self.subscribe(consumer)
        self.poll(consumer)
        consumer.commit()
        consumer.close()

    def member(self):
        client = self

        class Listener(ConsumerRebalanceListener):
            def on_partitions_assigned(self, assigned):
                client.show_assigned([p.partition for p in consumer.assignment()])

            def on_partitions_revoked(self, revoked):
                client.show_assigned([])

        consumer = self.consumer()
        self.subscribe(consumer, listener=Listener())
        ended = driver.end_of_input()
        while not ended.is_set():
            for batch in consumer.poll(timeout_ms=100).values():
                for record in batch:
                    self.show(record.partition, record.offset, record.key, record.value)
                consumer.commit()
        consumer.close()

    def seek(self):
        consumer = self.consumer()
        partition = TopicPartition(self.job.topic, 0)
        consumer.assign([partition])
        consumer.seek(partition, consumer.offsets_for_times({partition: self.job.timestamp})[partition].offset)
        self.poll(consumer)
        consumer.close()

    def begin_transactions(self):
        self.producer = KafkaProducer(
            bootstrap_servers=self.job.bootstrap,
            transactional_id=self.job.id,
            transaction_timeout_ms=self.job.timeout,
        )
        self.producer.init_transactions()

    def step_begin(self):
        self.producer.begin_transaction()

    def step_send(self, topic, partition, key, value):
        self.producer.send(topic, partition=int(partition), key=key.encode(), value=value.encode())

    def step_flush(self):
        self.producer.flush()

    def step_offset(self, group, topic, partition, offset):
        self.producer.send_offsets_to_transaction(
            {TopicPartition(topic, int(partition)): OffsetAndMetadata(int(offset), "", -1)}, group)

    def step_commit(self):
        self.producer.commit_transaction()

    def step_abort(self):
        self.producer.abort_transaction()

    def copy(self):
        self.begin_transactions()
        consumer = self.consumer()
        self.subscribe(consumer)
        ended = driver.end_of_input()
        transaction = 0
        while not ended.is_set():
            batches = consumer.poll(timeout_ms=100, max_records=self.job.max)
            if not batches:
                continue
            transaction += 1
            records = [record for batch in batches.values() for record in batch]
            if self.copied(consumer, records, transaction):
                for record in records:
                    self.show(record.partition, record.offset, record.key, record.value)
            else:
                self.rewind(consumer)
        consumer.close()

    def copied(self, consumer, records, transaction):
        """Copies some records in one transaction, and tells whether they were committed."""
        try:
            self.producer.begin_transaction()
            for record in records:
                self.producer.send(self.job.to, partition=record.partition, key=record.key, value=record.value)
            offsets = {p: OffsetAndMetadata(consumer.position(p), "", -1) for p in consumer.assignment()}
            self.producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
            self.producer.flush()
            if any(record.key.decode() == self.job.stall for record in records):
                self.stall()
            if transaction % driver.ABORTED:
                self.producer.commit_transaction()
                return True
        except KafkaError:
            pass  # the group may have moved on meanwhile; what cannot be aborted is refused again
        self.producer.abort_transaction()
        return False

    def rewind(self, consumer):
        """Returns to what the group has committed."""
        for partition in consumer.assignment():
            offset = consumer.committed(partition)
            if offset is None:
                consumer.seek_to_beginning(partition)
            else:
                consumer.seek(partition, offset)

    def admin(self):
        self.administrator = KafkaAdminClient(bootstrap_servers=self.job.bootstrap)
        super().admin()
        self.administrator.close()

    def create(self, partitions, configs):
        topic = NewTopic(self.job.topic, num_partitions=partitions, replication_factor=1, topic_configs=configs)
        self.administrator.create_topics([topic])

    def partitions(self):
        if self.job.topic not in self.administrator.list_topics():
            return 0
        return len(self.administrator.describe_topics([self.job.topic])[0]["partitions"])

    def config(self, name):
        resource = ConfigResource(ConfigResourceType.TOPIC, self.job.topic)
        configs = self.administrator.describe_configs([resource])["topic"][self.job.topic]
        return configs[name]["value"] if name in configs else None

    def alter(self, configs):
        self.administrator.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.job.topic, configs=configs)])

    def add_partitions(self, total):
        self.administrator.create_partitions({self.job.topic: NewPartitions(total)})

    def delete(self):
        self.administrator.delete_topics([self.job.topic])


driver.main(KafkaPython)
