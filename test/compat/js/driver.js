// The compatibility driver of KafkaJS. The Go package test/compat says what each verb must do.
'use strict'

const { once } = require('node:events')
const { createInterface } = require('node:readline')
const { buffer } = require('node:stream/consumers')
const { setTimeout: pause } = require('node:timers/promises')
const { parseArgs } = require('node:util')
const { CompressionCodecs, CompressionTypes, ConfigResourceTypes, Kafka, logLevel } = require('kafkajs')
const lz4 = require('lz4-napi')
const snappy = require('kafkajs-snappy')
const zstd = require('@bokuweb/zstd-wasm')

const limitMillis = 60_000
const deadline = Date.now() + limitMillis
const abortedOf = 3 // of so many transactions, the verb copy aborts one

// KafkaJS itself has gzip only; it takes the other codecs as plug-ins.
CompressionCodecs[CompressionTypes.Snappy] = snappy
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: (encoder) => lz4.compressFrame(encoder.buffer),
  decompress: (bytes) => lz4.decompressFrame(bytes),
})
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async (encoder) => Buffer.from(zstd.compress(encoder.buffer, 3)),
  decompress: async (bytes) => Buffer.from(zstd.decompress(bytes)),
})
const codecs = {
  none: CompressionTypes.None,
  gzip: CompressionTypes.GZIP,
  snappy: CompressionTypes.Snappy,
  lz4: CompressionTypes.LZ4,
  zstd: CompressionTypes.ZSTD,
}

const { positionals, values: flags } = parseArgs({
  allowPositionals: true,
  options: {
    bootstrap: { type: 'string' },
    topic: { type: 'string' },
    codec: { type: 'string', default: 'none' },
    idempotent: { type: 'string', default: 'false' },
    group: { type: 'string' },
    max: { type: 'string', default: '0' },
    timestamp: { type: 'string' },
    isolation: { type: 'string', default: 'read_uncommitted' },
    id: { type: 'string' },
    timeout: { type: 'string' },
    session: { type: 'string', default: '10000' },
    to: { type: 'string' },
    stall: { type: 'string' },
  },
})
const max = Number(flags.max)
const kafka = new Kafka({ clientId: 'compat', brokers: [flags.bootstrap], logLevel: logLevel.ERROR })

function show({ partition, message }) {
  console.log(['record', partition, message.offset, message.key, message.value].join('\t'))
}

function newConsumer() {
  return kafka.consumer({
    groupId: flags.group ?? `compat-${process.pid}-${Date.now()}`,
    heartbeatInterval: 500,
    sessionTimeout: Number(flags.session),
    readUncommitted: flags.isolation !== 'read_committed',
    maxWaitTimeInMs: 200,
  })
}

async function produce() {
  const idempotent = flags.idempotent === 'true'
  const producer = kafka.producer({ idempotent, maxInFlightRequests: idempotent ? 1 : null })
  await producer.connect()
  const lines = (await buffer(process.stdin)).toString().split('\n').filter(Boolean)
  const messages = lines.map((line) => {
    const [key, value] = line.split('\t')
    return { key, value }
  })
  await producer.send({ topic: flags.topic, acks: -1, compression: codecs[flags.codec], messages })
  await producer.disconnect()
}

// run prints messages until there have been max of them, and resolves to the last one's payload.
function run(consumer) {
  return new Promise((resolve, reject) => {
    let seen = 0
    const late = setTimeout(() => reject(new Error(`saw ${seen} of ${max} records in time`)), limitMillis)
    consumer.on(consumer.events.CRASH, ({ payload }) => payload.restart || reject(payload.error))
    consumer.run({
      autoCommit: false,
      eachMessage: async (payload) => {
        if (seen === max) return
        show(payload)
        if (++seen === max) {
          clearTimeout(late)
          resolve(payload)
        }
      },
    })
  })
}

async function consume() {
  const consumer = newConsumer()
  await consumer.connect()
  await consumer.subscribe({ topics: flags.topic.split(','), fromBeginning: true })
  await run(consumer)
  await consumer.disconnect()
}

async function resume() {
  const consumer = newConsumer()
  await consumer.connect()
  await consumer.subscribe({ topics: [flags.topic], fromBeginning: true })
  const { topic, partition, message } = await run(consumer)
  await consumer.commitOffsets([{ topic, partition, offset: String(Number(message.offset) + 1) }])
  await consumer.disconnect()
}

async function member() {
  const consumer = newConsumer()
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
    console.log(`assigned\t${(payload.memberAssignment[flags.topic] ?? []).sort((a, b) => a - b).join(',')}`)
  })
  await consumer.connect()
  await consumer.subscribe({ topics: [flags.topic], fromBeginning: true })
  await consumer.run({ autoCommitThreshold: 1, eachMessage: async (payload) => show(payload) })
  process.stdin.resume()
  await once(process.stdin, 'end')
  await consumer.disconnect()
}

async function seek() {
  const admin = kafka.admin()
  await admin.connect()
  const [{ offset }] = await admin.fetchTopicOffsetsByTimestamp(flags.topic, Number(flags.timestamp))
  await admin.disconnect()
  const consumer = newConsumer()
  await consumer.connect()
  await consumer.subscribe({ topics: [flags.topic], fromBeginning: true })
  const ran = run(consumer)
  consumer.seek({ topic: flags.topic, partition: 0, offset })
  await ran
  await consumer.disconnect()
}

// eventually waits for a change to show: Kafka's metadata follow an administrator a little later.
async function eventually(what, check) {
  while (!(await check())) {
    if (Date.now() > deadline) throw new Error(`${what}: not in time`)
    await pause(50)
  }
}

async function administer() {
  const admin = kafka.admin()
  await admin.connect()
  const topic = flags.topic
  const type = ConfigResourceTypes.TOPIC
  const name = 'retention.ms'

  async function awaitPartitions(want) {
    await eventually('describe', async () => {
      const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
      return topics[0].partitions.length === want
    })
    console.log(`partitions ${want}`)
  }

  async function awaitRetention(want) {
    await eventually('describe config', async () => {
      const { resources } = await admin.describeConfigs({ resources: [{ type, name: topic, configNames: [name] }] })
      return resources[0].configEntries[0].configValue === want
    })
    console.log(`${name} ${want}`)
  }

  const configEntries = [{ name, value: '3600000' }]
  await admin.createTopics({ topics: [{ topic, numPartitions: 2, configEntries }], waitForLeaders: true })
  console.log('created')
  await awaitPartitions(2)
  await awaitRetention('3600000')
  await admin.alterConfigs({ resources: [{ type, name: topic, configEntries: [{ name, value: '7200000' }] }] })
  await awaitRetention('7200000')
  await admin.createPartitions({ topicPartitions: [{ topic, count: 4 }] })
  await awaitPartitions(4)
  await admin.deleteTopics({ topics: [topic] })
  await eventually('list after delete', async () => !(await admin.listTopics()).includes(topic))
  console.log('deleted')
  await admin.disconnect()
}

// newTransactional makes a producer. KafkaJS initializes it with its first transaction.
function newTransactional() {
  return kafka.producer({ transactionalId: flags.id, transactionTimeout: Number(flags.timeout), maxInFlightRequests: 1 })
}

async function transact() {
  const producer = newTransactional()
  await producer.connect()
  let transaction
  const steps = {
    begin: async () => {
      transaction = await producer.transaction()
    },
    send: (topic, partition, key, value) =>
      transaction.send({ topic, messages: [{ partition: Number(partition), key, value }] }),
    flush: async () => {}, // send has waited
    offset: (consumerGroupId, topic, partition, offset) =>
      transaction.sendOffsets({ consumerGroupId, topics: [{ topic, partitions: [{ partition: Number(partition), offset }] }] }),
    commit: () => transaction.commit(),
    abort: () => transaction.abort(),
  }
  console.log('ready')
  for await (const line of createInterface({ input: process.stdin })) {
    const [step, ...args] = line.split('\t')
    try {
      await steps[step](...args)
      console.log('done')
    } catch (error) {
      console.log(`refused\t${error.type ?? error.name}`)
    }
  }
  await producer.disconnect()
}

async function copy() {
  const producer = newTransactional()
  await producer.connect()
  const consumer = newConsumer()
  await consumer.connect()
  await consumer.subscribe({ topics: [flags.topic], fromBeginning: true })
  let transactions = 0

  // copied copies some messages in one transaction, and tells whether they were committed.
  async function copied(partition, messages) {
    const transaction = await producer.transaction()
    const copies = messages.map(({ key, value }) => ({ partition, key, value }))
    await transaction.send({ topic: flags.to, messages: copies })
    const offset = String(Number(messages.at(-1).offset) + 1)
    await transaction.sendOffsets({
      consumerGroupId: flags.group,
      topics: [{ topic: flags.topic, partitions: [{ partition, offset }] }],
    })
    transactions++
    if (messages.some(({ key }) => key.toString() === flags.stall)) {
      console.log('stalled')
      await new Promise(() => {})
    }
    if (transactions % abortedOf === 0) {
      await transaction.abort()
      return false
    }
    await transaction.commit()
    return true
  }

  await consumer.run({
    autoCommit: false,
    eachBatchAutoResolve: false,
    eachBatch: async ({ batch: { partition, messages }, resolveOffset, heartbeat }) => {
      for (let at = 0; at < messages.length; at += max) {
        const some = messages.slice(at, at + max)
        while (!(await copied(partition, some))) await heartbeat()
        for (const message of some) {
          show({ partition, message })
          resolveOffset(message.offset)
        }
        await heartbeat()
      }
    },
  })
  process.stdin.resume()
  await once(process.stdin, 'end')
  await consumer.disconnect()
  await producer.disconnect()
}

const verbs = { produce, consume, resume, member, seek, admin: administer, transact, copy }

async function main() {
  await zstd.init()
  await verbs[positionals[0]]()
}

// end exits once standard output, which may be a slow pipe, has taken everything.
function end(status) {
  process.stdout.write('', () => process.exit(status))
}

main().then(
  () => end(0),
  (error) => {
    console.error(error)
    end(1)
  },
)
